package snapshot

import (
	"encoding/json"
	"testing"

	"bandsox.dev/guest/internal/wire"
)

func TestATimeIsThatOfAMomentAndWhatHasPassedSince(t *testing.T) {
	said := func(fields map[string]json.RawMessage) wire.Message {
		return wire.Message{Type: "identify", Fields: fields}
	}
	guest := &Guest{UptimeMs: func() int64 { return 1750 }}
	withMoment := said(map[string]json.RawMessage{"timeUs": []byte("5000000"), "uptimeMs": []byte("1500")})
	if now := guest.timeNow(withMoment); now != 5250000 {
		t.Fatal(now)
	}
	if now := guest.timeNow(said(map[string]json.RawMessage{"timeUs": []byte("5000000")})); now != 5000000 {
		t.Fatal(now)
	}
	if now := (&Guest{}).timeNow(withMoment); now != 5000000 {
		t.Fatal(now)
	}
}
