package serialline

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"bandsox.dev/guest/internal/serial"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func TestPortIsFoundByItsName(t *testing.T) {
	folder := t.TempDir()
	for device, name := range map[string]string{"vport1p1": "org.qemu.guest_agent.0\n", "vport2p1": "bandsox.agent\n", "vport3p1": ""} {
		if err := os.Mkdir(filepath.Join(folder, device), 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			continue // it has not been given its name yet
		}
		if err := os.WriteFile(filepath.Join(folder, device, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if device, err := findPort(folder, DefaultPort); err != nil || device != "/dev/vport2p1" {
		t.Errorf("found %q, %v", device, err)
	}
	for _, name := range []string{"bandsox", "agent", ""} {
		if device, err := findPort(folder, name); err == nil {
			t.Errorf("%q found %s", name, device)
		}
	}
}

func TestUARTsAreToldFromPorts(t *testing.T) {
	for name, want := range map[string]bool{
		"ttyS0": true, "ttyS12": true, "ttyS": false, "ttySx": false, "bandsox.agent": false, "0": false, "ttyS0x": false,
	} {
		if isUART(name) != want {
			t.Errorf("%s: %v, want %v", name, !want, want)
		}
	}
}

// terminal is a pseudo-terminal: its master stands for the host's end of a UART.
func terminal(t *testing.T) (master *os.File, device string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() }) // a test may have closed it
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number, unlocked uint32
	var errno, lockErrno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPTN, uintptr(unsafe.Pointer(&number)))
		_, _, lockErrno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlocked)))
	})
	if err != nil || errno != 0 || lockErrno != 0 {
		t.Fatal(err, errno, lockErrno)
	}
	if err := master.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return master, fmt.Sprint("/dev/pts/", number)
}

func wantRead(t *testing.T, from io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got[:n], err, want)
	}
}

func TestUARTTakesEveryByteAndEchoesNone(t *testing.T) {
	master, device := terminal(t)
	line, err := openUART(device)
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, master, "\x1e") // now the host may speak
	var every []byte
	for i := 0; i < 256; i++ {
		every = append(every, byte(i))
	}
	if _, err := master.Write(every); err != nil {
		t.Fatal(err)
	}
	wantRead(t, line, string(every))
	// The console's line ends are translated as ever; whatever else comes out comes unchanged, and nothing comes that was echoed.
	if _, err := line.Write([]byte("text\n\x1e\x80\xff")); err != nil {
		t.Fatal(err)
	}
	wantRead(t, master, "text\r\n\x1e\x80\xff")
	if err := line.Close(); err != nil {
		t.Error(err)
	}
}

func TestUARTWhoseModesWereChangedIsSetAgain(t *testing.T) {
	master, device := terminal(t)
	line, err := openUART(device)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	wantRead(t, master, "\x1e")
	var modes syscall.Termios
	if err := line.control(syscall.TCGETS, &modes); err != nil {
		t.Fatal(err)
	}
	modes.Lflag |= syscall.ECHO | syscall.ICANON // as a login does
	modes.Iflag |= syscall.ICRNL | syscall.IXON
	if err := line.control(syscall.TCSETS, &modes); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if err := line.control(syscall.TCGETS, &modes); err != nil {
			t.Fatal(err)
		}
		if modes == rawInput(modes) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the modes stay as they were changed: %+v", modes)
		}
	}
}

func TestClosedUARTEndsItsReader(t *testing.T) {
	_, device := terminal(t)
	line, err := openUART(device)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := line.Read(make([]byte, 1))
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond) // by now it reads
	if err := line.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("it read something")
	}
}

// socketLine is a line to whoever dials.
func socketLine(t *testing.T) (line *Socket, dial func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "line.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return ListenOn(listener), func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(patience))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // a test may have closed it
		return conn
	}
}

func TestSocketWaitsWhileNobodyIsThere(t *testing.T) {
	line, dial := socketLine(t)
	got := make(chan string)
	go func() {
		text := make([]byte, 5)
		for {
			n, err := line.Read(text)
			if err != nil {
				close(got)
				return
			}
			got <- string(text[:n])
		}
	}()
	for _, word := range []string{"first", "again"} {
		host := dial()
		if _, err := io.WriteString(host, word); err != nil {
			t.Fatal(err)
		}
		if text := <-got; text != word {
			t.Errorf("got %q, want %q", text, word)
		}
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	}
	written := make(chan error)
	go func() {
		_, err := line.Write([]byte("late"))
		written <- err
	}()
	host := dial()
	if err := <-written; err != nil {
		t.Error(err)
	}
	wantRead(t, host, "late")
	if err := line.Close(); err != nil {
		t.Error(err)
	}
	if text, more := <-got; more {
		t.Errorf("after the end: %q", text)
	}
	if _, err := line.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("written after the end: %v", err)
	}
}

func TestStreamsOutliveTheClosingOfTheirListener(t *testing.T) {
	line, dial := socketLine(t)
	listener := Listen(line, serial.Settings{})
	host := serial.NewHost(dial(), serial.Settings{})
	defer host.Close()
	ours, err := host.Dial(9000, patience)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted after the end: %v", err)
	}
	said := bytes.Repeat([]byte("still here"), 1000)
	go func() {
		if _, err := theirs.Write(said); err != nil {
			t.Error(err)
		}
	}()
	wantRead(t, ours, string(said))
	// A later one is closed at once, or refused.
	if late, err := host.Dial(9000, patience); err == nil {
		if _, err := late.Read(make([]byte, 1)); err == nil {
			t.Error("a late stream is served")
		}
	}
	if err := listener.End(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := ours.Read(make([]byte, 1)); err == nil {
		t.Error("the stream goes on after the line's end")
	}
}
