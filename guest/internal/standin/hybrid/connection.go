package hybrid

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// pumpBytes is what is moved at once.
const pumpBytes = 64 << 10

// connection is one that a guest may have taken.
type connection struct {
	device *Device
	host   *net.UnixConn
	near   net.Conn
	// isSevered is set by a snapshot: the guest's end is reset, and the host learns of it only by writing.
	isSevered atomic.Bool
	ending    sync.Once
}

// answer says which port of the host's side it is.
func (c *connection) answer(number uint32) bool {
	_, err := fmt.Fprintf(c.host, "OK %d\n", number)
	return err == nil
}

// toGuest ends the whole connection with the host's end of sending: there is no half-close.
func (c *connection) toGuest() {
	defer c.end()
	data := make([]byte, pumpBytes)
	for {
		n, err := c.host.Read(data)
		c.device.gate.Pass()
		if c.isSevered.Load() {
			return
		}
		if n > 0 {
			if _, err := c.near.Write(data[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// toHost delivers all that a guest has sent before it closed.
func (c *connection) toHost() {
	data := make([]byte, pumpBytes)
	for {
		n, err := c.near.Read(data)
		c.device.gate.Pass()
		if c.isSevered.Load() {
			return // the host's end stays, and is told nothing
		}
		if n > 0 {
			if _, err := c.host.Write(data[:n]); err != nil {
				c.end()
				return
			}
		}
		if err != nil {
			c.end()
			return
		}
	}
}

func (c *connection) end() {
	c.ending.Do(func() {
		_ = c.host.Close() // the other end may have gone
		_ = c.near.Close() // likewise
		go func() {        // the device may be ending all of them, with its lock
			c.device.mutex.Lock()
			defer c.device.mutex.Unlock()
			delete(c.device.connections, c)
		}()
	})
}
