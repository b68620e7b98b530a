package qemustate

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// The kernel's signal for the end of who started a process is one that anybody can send.
func TestAStateThatNobodyWantsAnyMoreIsGivenUp(t *testing.T) {
	for name, connects := range map[string]bool{"while it is waited for": false, "while it comes": true} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			save := Save{
				Socket: filepath.Join(folder, "save.sock"), Owner: -1, Memory: filepath.Join(folder, "memory"),
				Devices: filepath.Join(folder, "devices"), MemoryBytes: memorySize,
			}
			go func() {
				for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					if _, err := os.Stat(save.Memory); err != nil {
						continue
					}
					if connects {
						conn, err := net.Dial("unix", save.Socket)
						if err != nil {
							continue
						}
						defer conn.Close() // only now: the stream is not cut
						_, _ = conn.Write(wholeStream()[:100])
					}
					_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
					time.Sleep(5 * time.Second)
					return
				}
			}()
			began := time.Now()
			var out bytes.Buffer
			if status := save.Run(&out); status != 1 {
				t.Error(status, out.String())
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
			if names := namesIn(t, folder); names != "" {
				t.Errorf("the folder holds %s", names)
			}
		})
	}
}
