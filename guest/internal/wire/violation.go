package wire

import "fmt"

// The names of PROTOCOL.md section 1, in the order in which they are looked for.
const (
	FrameKindUnknown   = "frame-kind-unknown"
	FrameEmpty         = "frame-empty"
	FrameTooLarge      = "frame-too-large"
	FrameTruncated     = "frame-truncated"
	MessageNotUTF8     = "message-not-utf8"
	MessageTooDeep     = "message-too-deep"
	MessageNotJSON     = "message-not-json"
	MessageNotObject   = "message-not-object"
	MessageTypeUnknown = "message-type-unknown"
	MessageInvalid     = "message-invalid"
)

// Violation is something that the other side must not send. It ends the connection.
type Violation struct {
	Name   string // one of the names above
	Detail string
}

func (v *Violation) Error() string { return v.Name + ": " + v.Detail }

// Violatef makes a Violation.
func Violatef(name, format string, args ...interface{}) *Violation {
	return &Violation{Name: name, Detail: fmt.Sprintf(format, args...)}
}
