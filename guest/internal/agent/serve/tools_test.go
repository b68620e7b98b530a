package serve

import (
	"strings"
	"testing"

	"bandsox.dev/guest/internal/wire"
)

func TestTheHelloNamesWhatTheAgentCanDo(t *testing.T) {
	_, path := newServer(t)
	h := dial(t, path)
	h.send(object{"type": "hello", "protocol": 1, "minProtocol": 1})
	named := strings.Join(h.expect("hello").Texts("capabilities"), " ")
	for _, each := range []string{"pty", "connect", "tools", "links"} {
		if !strings.Contains(named, each) {
			t.Errorf("%s is missing of %q", each, named)
		}
	}
}

func TestAnUnknownToolIsRefusedAndTheConnectionStaysUsable(t *testing.T) {
	h := connect(t)
	h.exec(object{"tool": []string{"rm", "-rf", "/"}}).expectError(t, "command-not-found")
	h.expectUsable()
}

func TestAToolIsTheAgentsOwnBinary(t *testing.T) {
	h := connect(t)
	// Here that is this test's binary, which knows no tools: that it ran, and with which words, is what can be seen.
	r := h.exec(object{"tool": []string{"pack", "/x"}, "env": object{"BANDSOX_TEST_SHOW_WORDS": "1"}})
	r.expectCode(t, 0)
	if got := r.stdout.String(); got != "bandsox-agent tool pack /x\n" {
		t.Fatalf("it ran with %q", got)
	}
}

func TestAServerWithoutLinksSaysSo(t *testing.T) {
	server, path := newServer(t)
	h := greet(t, path)
	h.send(object{"type": "links"})
	if links := h.expect("links"); !links.Has("serial") || links.Object("vsock").Flag("device", true) {
		t.Fatalf("got %s", show(links))
	}
	port := uint32(9000)
	server.Links = func() wire.Links {
		return wire.Links{Type: "links", Vsock: wire.VsockLink{Kernel: true, Device: true, Port: &port}, Serial: []wire.SerialLine{}}
	}
	h = greet(t, path)
	h.send(object{"type": "links"})
	if links := h.expect("links"); links.Object("vsock").Integer("port", 0) != 9000 {
		t.Fatalf("got %s", show(links))
	}
}
