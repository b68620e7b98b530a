package links

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bandsox.dev/guest/internal/wire"
)

func TestTheMessageIsOneThatTheHostTakes(t *testing.T) {
	var state State
	state.VsockWaits(errors.New("no device \xff\x00" + strings.Repeat("x", 5000)))
	for i := 0; i < 10; i++ {
		state.SerialServes(fmt.Sprint("ttyS", i), "uart", func() bool { return true })
		state.SerialServes("ttyS0", "uart", func() bool { return true }) // opened again
	}
	message := state.Message()
	if len(message.Serial) != 8 || !message.Serial[0].Up || message.Vsock.Port != nil {
		t.Fatalf("got %+v", message)
	}
	requireShape(t, message)
	state.VsockListens(9000)
	message = state.Message()
	if message.Vsock.Port == nil || *message.Vsock.Port != 9000 || message.Vsock.Reason != "" {
		t.Fatalf("got %+v", message.Vsock)
	}
	requireShape(t, message)
	var nothing State
	requireShape(t, nothing.Message())
}

func requireShape(t *testing.T, message wire.Links) {
	t.Helper()
	frame, err := wire.AppendMessage(nil, message)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.NewDecoder(strings.NewReader(string(frame)), wire.ToHost).Next(); err != nil {
		text, _ := json.Marshal(message)
		t.Fatalf("%v: %s", err, text)
	}
}

func TestModulesAndDevicesAreFoundByTheirNames(t *testing.T) {
	folder := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	modules := write("modules", "virtio_blk 1 0\nvmw_vsock_virtio_transport 16384 1 - Live 0x0\nvsock 2 1\n")
	if got := loadedTransport(modules); got != "vmw_vsock_virtio_transport" {
		t.Fatalf("module %q", got)
	}
	if got := loadedTransport(write("none", "vsock_loopback 1 0\n")); got != "" {
		t.Fatalf("module %q", got)
	}
	if got := loadedTransport(filepath.Join(folder, "hidden")); got != "" {
		t.Fatalf("module %q", got)
	}
	devices := filepath.Join(folder, "devices")
	write("devices/virtio0/device", "0x0002\n")
	if hasDevice(devices) {
		t.Fatal("a disk is no socket device")
	}
	write("devices/virtio1/device", "0x0013\n")
	if !hasDevice(devices) {
		t.Fatal("the device was not found")
	}
}
