package ownsocket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDialFollowsNoLink(t *testing.T) {
	folder := t.TempDir()
	socket := filepath.Join(folder, "api.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	link := filepath.Join(folder, "link.sock")
	if err := os.Symlink(socket, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(link); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("through a link: %v", err)
	}
	if _, err := Dial(filepath.Join(folder, "none.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("where there is none: %v", err)
	}
}
