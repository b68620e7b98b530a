package wire

import (
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// Message is a validated message: its type and its fields, unknown ones included, as they were sent.
type Message struct {
	Type   string
	Fields map[string]json.RawMessage
}

// Has says whether an optional field was sent.
func (m Message) Has(name string) bool {
	_, sent := m.Fields[name]
	return sent
}

// Text gives a string field, "" when it was not sent. The kind of every known field was checked by the decoder, which is
// why these accessors have no error to give.
func (m Message) Text(name string) string {
	value, _ := parseText(m.Fields[name])
	return value
}

// Integer gives an integer field, or absent when it was not sent.
func (m Message) Integer(name string, absent int64) int64 {
	raw, sent := m.Fields[name]
	if !sent {
		return absent
	}
	value, _ := parseInteger(raw)
	return value
}

// Flag gives a boolean field, or absent when it was not sent.
func (m Message) Flag(name string, absent bool) bool {
	raw, sent := m.Fields[name]
	if !sent {
		return absent
	}
	return string(raw) == "true"
}

// Texts gives a field that is an array of strings, nil when it was not sent.
func (m Message) Texts(name string) []string {
	var values []string
	if raw, sent := m.Fields[name]; sent && json.Unmarshal(raw, &values) != nil {
		return nil
	}
	return values
}

// TextMap gives a field that is an object of strings, nil when it was not sent.
func (m Message) TextMap(name string) map[string]string {
	var values map[string]string
	if raw, sent := m.Fields[name]; sent && json.Unmarshal(raw, &values) != nil {
		return nil
	}
	return values
}

// Object gives a field that is an object, without fields when it was not sent.
func (m Message) Object(name string) Message { return Message{Fields: parseObject(m.Fields[name])} }

// parseMessage checks a payload in the order of PROTOCOL.md section 1. Fields are matched by hand because encoding/json
// would match names without regard to case and replace what is not UTF-8.
func parseMessage(payload []byte, direction Direction) (Message, error) {
	if !utf8.Valid(payload) {
		return Message{}, Violatef(MessageNotUTF8, "%d bytes", len(payload))
	}
	if nestsTooDeep(payload) {
		return Message{}, Violatef(MessageTooDeep, "more than %d brackets", maxNesting)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(payload, &fields); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return Message{}, Violatef(MessageNotJSON, "%v", err)
		}
		return Message{}, Violatef(MessageNotObject, "%v", err)
	}
	if fields == nil { // encoding/json takes null for any map
		return Message{}, Violatef(MessageNotObject, "null")
	}
	name, ok := parseText(fields["type"])
	if !ok {
		return Message{}, Violatef(MessageTypeUnknown, "no type")
	}
	shape, known := shapesOf(direction)[name]
	if !known {
		return Message{}, Violatef(MessageTypeUnknown, "%.64q", name)
	}
	if violation := shape.check(fields); violation != "" {
		return Message{}, Violatef(MessageInvalid, "%s: %s", name, violation)
	}
	return Message{Type: name, Fields: fields}, nil
}

// nestsTooDeep counts brackets outside strings. It works on text that may be no JSON at all, so its rule is the plain one of
// PROTOCOL.md: an opening bracket adds one, a closing one takes one away (not below zero).
func nestsTooDeep(text []byte) bool {
	depth := 0
	inString := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			if depth > maxNesting {
				return true
			}
		case (c == '}' || c == ']') && depth > 0:
			depth--
		}
	}
	return false
}
