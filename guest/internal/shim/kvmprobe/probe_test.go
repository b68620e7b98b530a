package kvmprobe

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
)

// TestMain makes this test program the process that tries the guest when it is started as that.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(RunGuest(os.Stdout))
	}
	os.Exit(m.Run())
}

// What the answer is depends on the machine; that it is one, does not.
func TestAnswerAndStatusAgree(t *testing.T) {
	var out bytes.Buffer
	status := Probe(&out)
	var result Result
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	if result.Reason == "" || result.Usable != (status == statusUsable) || !result.Usable && status != statusNotUsable {
		t.Errorf("status %d with %+v", status, result)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil && result.Usable {
		t.Errorf("usable without a device: %+v", result)
	}
	t.Log(result.Reason)
}
