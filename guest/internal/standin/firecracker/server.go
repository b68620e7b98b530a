package firecracker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

const (
	// maxBodyBytes is Firecracker's limit for a request.
	maxBodyBytes = 51200
	// maxHeaders bounds the lines before a body.
	maxHeaders = 100
)

// serve answers on the API socket, whose file is never removed. As much of HTTP as Firecracker has is spoken here, since package
// net/http costs a starting process more than all the rest.
func (v *vmm) serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go v.converse(conn)
	}
}

// converse answers the requests of one connection until the client has gone, or says what is no HTTP.
func (v *vmm) converse(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		message, err := readMessage(reader, conn)
		var refusal *fault
		answer := response{}
		switch {
		case err == nil:
			answer = v.handle(message.method, message.path, message.body)
		case errors.As(err, &refusal):
			answer = response{status: statusBadRequest, body: map[string]string{"error": refusal.text}}
		default:
			return // the client has gone
		}
		if writeErr := writeAnswer(conn, answer); writeErr != nil || err != nil {
			return
		}
		if answer.isFatal {
			v.fail("RunWithApi(BuildMicroVmError(Restore))", "RunWithApi error: Failed to build MicroVM: Loading snapshot failed..")
		}
		if message.isLast {
			return
		}
	}
}

// message is a request as it came.
type message struct {
	method, path string
	body         []byte
	// isLast is of a client that closes the connection afterwards.
	isLast bool
}

// readMessage reads a request. conn gets the word that a client may wait for before it sends a body.
func readMessage(reader *bufio.Reader, conn io.Writer) (*message, error) {
	line, err := reader.ReadString('\n')
	if err != nil {
		return nil, err
	}
	words := strings.Fields(line)
	if len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/1.") {
		return nil, refuse("Invalid HTTP request: %.40q", line)
	}
	path, _, _ := strings.Cut(words[1], "?")
	if _, rest, isWhole := strings.Cut(path, "://"); isWhole {
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	m := &message{method: words[0], path: path}
	size := 0
	for i := 0; ; i++ {
		line, err := reader.ReadString('\n')
		if err != nil {
			return nil, err
		}
		if line = strings.TrimSpace(line); line == "" {
			break
		}
		if i == maxHeaders {
			return nil, refuse("Invalid HTTP request: too many headers")
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "content-length":
			if size, err = strconv.Atoi(value); err != nil || size < 0 {
				return nil, refuse("Invalid header: Content-Length: %s", value)
			}
		case "transfer-encoding":
			return nil, refuse("Unsupported header: Transfer-Encoding: %s", value)
		case "connection":
			m.isLast = strings.EqualFold(value, "close")
		case "expect":
			if _, err := io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
				return nil, err
			}
		}
	}
	if size > maxBodyBytes {
		return nil, refuse("Request payload with size %d is larger than the limit of %d allowed by server.", size, maxBodyBytes)
	}
	m.body = make([]byte, size)
	_, err = io.ReadFull(reader, m.body)
	return m, err
}

// The statuses of Firecracker's answers.
const (
	statusWithBody   = 200
	statusNoBody     = 204
	statusBadRequest = 400
)

var reasons = map[int]string{statusWithBody: "OK", statusNoBody: "", statusBadRequest: "Bad Request"}

func writeAnswer(conn io.Writer, answer response) error {
	text := &strings.Builder{}
	fmt.Fprintf(text, "HTTP/1.1 %d %s\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n", answer.status, reasons[answer.status])
	if answer.isDeprecated {
		text.WriteString("Deprecation: true\r\n")
	}
	body := []byte(nil)
	if answer.body != nil {
		var err error
		if body, err = json.Marshal(answer.body); err != nil {
			return err
		}
		fmt.Fprintf(text, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	text.WriteString("\r\n")
	text.Write(body)
	_, err := io.WriteString(conn, text.String())
	return err
}
