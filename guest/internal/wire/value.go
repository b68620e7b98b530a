package wire

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
)

// maxInteger is the largest integer that JavaScript holds exactly, 2^53-1.
const maxInteger = 1<<53 - 1

// check looks at one value and says whether it is as the protocol wants it.
type check func(raw json.RawMessage) bool

// parseText decodes a JSON string. It refuses NUL, which no system call takes, and lone surrogates: encoding/json would put
// U+FFFD in their place, JavaScript keeps them, and the two sides would then talk of different names.
func parseText(raw json.RawMessage) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' || hasLoneSurrogate(raw) {
		return "", false
	}
	var value string
	if json.Unmarshal(raw, &value) != nil {
		return "", false
	}
	return value, strings.IndexByte(value, 0) < 0
}

// hasLoneSurrogate looks for a \ud800…\udfff escape without its other half. Valid UTF-8 holds no surrogate but as an escape.
func hasLoneSurrogate(raw []byte) bool {
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++ // to the escape's letter
		unit, ok := escapedUnit(raw[i:])
		if !ok || unit < 0xd800 || unit > 0xdfff {
			continue
		}
		if unit >= 0xdc00 || i+6 >= len(raw) || raw[i+5] != '\\' {
			return true
		}
		low, ok := escapedUnit(raw[i+6:])
		if !ok || low < 0xdc00 || low > 0xdfff {
			return true
		}
		i += 10 // over both halves; the loop adds one
	}
	return false
}

// escapedUnit reads uXXXX, the part of an escape behind the backslash.
func escapedUnit(text []byte) (uint64, bool) {
	if len(text) < 5 || text[0] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(text[1:5]), 16, 16)
	return unit, err == nil
}

// parseObject decodes a JSON object; nil says that it is none.
func parseObject(raw json.RawMessage) map[string]json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return nil
	}
	return fields
}

// parseInteger decodes an integer without fraction or exponent, between -maxInteger and maxInteger.
func parseInteger(raw json.RawMessage) (int64, bool) {
	if len(raw) == 0 || len(raw) > 17 || string(raw) == "-0" || strings.ContainsAny(string(raw), ".eE\"") {
		return 0, false
	}
	value, err := strconv.ParseInt(string(raw), 10, 64)
	return value, err == nil && value <= maxInteger && value >= -maxInteger
}

func textUpTo(maxBytes int) check {
	return func(raw json.RawMessage) bool {
		value, ok := parseText(raw)
		return ok && len(value) <= maxBytes
	}
}

func oneOf(allowed ...string) check {
	return func(raw json.RawMessage) bool {
		value, ok := parseText(raw)
		if !ok {
			return false
		}
		for _, a := range allowed {
			if a == value {
				return true
			}
		}
		return false
	}
}

func isPath(raw json.RawMessage) bool {
	value, ok := parseText(raw)
	return ok && len(value) <= 4096 && strings.HasPrefix(value, "/")
}

func isChecksum(raw json.RawMessage) bool {
	value, ok := parseText(raw)
	return ok && len(value) >= 8 && len(value) <= 128 && strings.Trim(value, "0123456789abcdef") == ""
}

// isToken is a name that the host gave an operation which outlives its connection.
func isToken(raw json.RawMessage) bool {
	value, ok := parseText(raw)
	return ok && len(value) >= 16 && len(value) <= 64 && strings.Trim(value, alphanumeric+"_-") == ""
}

// Letters that names are made of.
const (
	digits       = "0123456789"
	capitals     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	alphanumeric = capitals + "abcdefghijklmnopqrstuvwxyz" + digits
)

// isHostName is what a sandbox may be called: the kernel takes 64 bytes.
func isHostName(raw json.RawMessage) bool {
	value, ok := parseText(raw)
	return ok && value != "" && len(value) <= 64 && strings.Trim(value, alphanumeric+"._-") == "" && strings.IndexByte(alphanumeric, value[0]) >= 0
}

// isMachineID is the content of machine-id(5).
func isMachineID(raw json.RawMessage) bool {
	value, ok := parseText(raw)
	return ok && len(value) == 32 && strings.Trim(value, digits+"abcdef") == ""
}

// isEntropy is 16 to 512 bytes in base64, padded. (The decoder of the standard library steps over line ends.)
func isEntropy(raw json.RawMessage) bool {
	value, ok := parseText(raw)
	if !ok || len(value)%4 != 0 || strings.ContainsAny(value, "\r\n") {
		return false
	}
	data, err := base64.StdEncoding.DecodeString(value)
	return err == nil && len(data) >= 16 && len(data) <= 512
}

func isIdentityName(name string) bool {
	const prefix = "BANDSOX_"
	return len(name) > len(prefix) && len(name) <= 256 && strings.HasPrefix(name, prefix) && strings.Trim(name, capitals+digits+"_") == ""
}

func isFlag(raw json.RawMessage) bool { return string(raw) == "true" || string(raw) == "false" }

func integerIn(least, most int64) check {
	return func(raw json.RawMessage) bool {
		value, ok := parseInteger(raw)
		return ok && value >= least && value <= most
	}
}

// arrayOf checks the number of items and each of them.
func arrayOf(least, most int, item check) check {
	return func(raw json.RawMessage) bool {
		var items []json.RawMessage
		if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &items) != nil || len(items) < least || len(items) > most {
			return false
		}
		for _, i := range items {
			if !item(i) {
				return false
			}
		}
		return true
	}
}

// mapOf checks the number of names of an object, each name, and each value.
func mapOf(most int, isName func(string) bool, value check) check {
	return func(raw json.RawMessage) bool {
		var values map[string]json.RawMessage
		if len(raw) == 0 || raw[0] != '{' || hasLoneSurrogate(raw) || json.Unmarshal(raw, &values) != nil || len(values) > most {
			return false
		}
		for name, v := range values {
			if !isName(name) || strings.IndexByte(name, 0) >= 0 || !value(v) {
				return false
			}
		}
		return true
	}
}
