package wire

import (
	"encoding/json"
	"strings"
)

// field is a known field of a message.
type field struct {
	name     string
	required bool
	check    check
}

// shape is what PROTOCOL.md sections 2 to 4 say about one message.
type shape struct {
	fields []field
	// exactlyOneOf names fields of which one, and only one, must be there.
	exactlyOneOf []string
	// also checks what lies between fields; "" is good.
	also func(fields map[string]json.RawMessage) string
}

// Bounds of PROTOCOL.md that shapes name more than once.
const (
	maxTextBytes     = 4096
	maxArgumentBytes = 128 * 1024
	maxTimeoutMs     = 1<<31 - 1
	maxModeBits      = 4095
	minWindowBytes   = 65536
	maxWindowBytes   = 16777216
	maxTerminalSide  = 10000
	maxKeepMs        = 600000
	maxHooksMs       = 600000
)

// Bounds that who sends a message must keep to as well.
const (
	MaxRemarks      = 32
	MaxRemarkBytes  = 1024
	MaxJobs         = 256
	MaxPreviewBytes = 256
)

var anyInteger = integerIn(0, maxInteger)

// environment refuses an empty name and "=" in a name, which would set another variable than the one named.
var environment = mapOf(1024, func(name string) bool {
	return name != "" && len(name) <= maxTextBytes && !strings.Contains(name, "=")
}, textUpTo(maxArgumentBytes))

var anyText = textUpTo(maxTextBytes)

// stages are names of what was done, and how long it took or when it was.
var stages = mapOf(32, func(name string) bool { return len(name) <= 64 }, anyInteger)

// identity are the variables that tell a machine who it is.
var identity = mapOf(64, isIdentityName, anyText)

// remarks are sentences for a person.
var remarks = arrayOf(0, MaxRemarks, textUpTo(MaxRemarkBytes))

func need(name string, check check) field { return field{name, true, check} }
func may(name string, check check) field  { return field{name, false, check} }

var toGuest = map[string]shape{
	"hello": {
		fields: []field{need("protocol", integerIn(1, 65535)), need("minProtocol", integerIn(1, 65535))},
		also:   rangeIsOrdered,
	},
	"ping": {},
	"exec": {
		fields: []field{
			may("argv", arrayOf(1, 4096, textUpTo(maxArgumentBytes))), may("shell", textUpTo(maxArgumentBytes)),
			may("env", environment), may("cwd", isPath), may("user", anyText),
			may("stdin", isFlag), may("timeoutMs", integerIn(1, maxTimeoutMs)),
			may("makeCwd", isFlag), may("stopSignal", anyText), may("pty", objectOf(sizeShape)),
			may("tool", arrayOf(1, 4096, textUpTo(maxArgumentBytes))), may("job", isToken), may("keepMs", integerIn(0, maxKeepMs)),
		},
		exactlyOneOf: []string{"argv", "shell", "tool"},
	},
	"attach": {fields: []field{need("job", isToken), may("offset", anyInteger)}},
	"signal": {fields: []field{need("signal", anyText)}},
	"resize": sizeShape,
	"eof":    {},
	"upload": {fields: []field{
		need("path", isPath), may("size", anyInteger), may("mode", integerIn(0, maxModeBits)), may("makeParents", isFlag),
		need("checksum", anyText), may("user", anyText), may("offset", anyInteger), may("transfer", isToken),
	}},
	"download": {fields: []field{
		need("path", isPath), need("checksum", anyText), may("offset", anyInteger), may("transfer", isToken),
	}},
	"complete": completeShape,
	"ack":      ackShape,
	"abort":    {},
	"stat":     {fields: []field{need("path", isPath), may("followLinks", isFlag)}},
	"list":     {fields: []field{need("path", isPath)}},
	"connect":  {fields: []field{need("port", integerIn(1, 65535)), may("host", textUpTo(255))}},
	"links":    {},
	"shutdown": {fields: []field{need("mode", oneOf("poweroff", "reboot")), may("graceMs", integerIn(0, 60000))}},
	"freeze":   {fields: []field{may("hooksMs", integerIn(0, maxHooksMs)), may("leaseMs", integerIn(1000, maxHooksMs))}},
	"thaw":     {},
	"identify": {fields: []field{
		may("timeUs", anyInteger), may("uptimeMs", anyInteger), may("entropy", isEntropy), may("hostname", isHostName), may("machineId", isMachineID),
		may("port", integerIn(1, 1<<32-1)), may("env", identity), may("restored", isFlag), may("hooksMs", integerIn(0, maxHooksMs)),
	}},
	"jobs": {},
}

var toHost = map[string]shape{
	"hello": {fields: []field{
		need("protocol", integerIn(1, 65535)), need("agent", textUpTo(64)), need("bootId", textUpTo(64)),
		need("capabilities", arrayOf(0, 64, textUpTo(64))), need("checksums", arrayOf(1, 16, textUpTo(32))),
		may("stages", stages),
	}},
	"pong":    {fields: []field{need("uptimeMs", anyInteger)}},
	"started": {fields: []field{need("pid", integerIn(1, maxTimeoutMs))}},
	"attached": {fields: []field{
		need("pid", integerIn(1, maxTimeoutMs)), need("offset", anyInteger), need("inputOffset", anyInteger),
	}},
	"connected": {},
	"eof":       {},
	"links": {fields: []field{
		need("vsock", objectOf(vsockShape)), need("serial", arrayOf(0, 8, objectOf(serialShape))),
	}},
	"exit": {
		fields:       []field{may("code", integerIn(0, 255)), may("signal", textUpTo(32)), may("timedOut", isFlag)},
		exactlyOneOf: []string{"code", "signal"},
	},
	"ready": {fields: []field{
		need("chunkBytes", integerIn(1, MaxDataBytes)), need("windowBytes", integerIn(minWindowBytes, maxWindowBytes)),
		need("offset", anyInteger), may("size", anyInteger), may("mode", integerIn(0, maxModeBits)),
		may("mtimeMs", integerIn(-maxInteger, maxInteger)),
	}},
	"ack":      ackShape,
	"complete": completeShape,
	"info":     {fields: []field{need("file", objectOf(entryShape))}},
	"entries":  {fields: []field{need("files", arrayOf(1, 256, objectOf(entryShape)))}},
	"listed":   {fields: []field{need("count", anyInteger)}},
	"stopping": {},
	"frozen": {fields: []field{
		need("processes", integerIn(0, maxTimeoutMs)), need("stagesUs", stages), need("warnings", remarks),
	}},
	"thawed": {},
	"identified": {fields: []field{
		need("stagesUs", stages), need("failures", remarks), need("port", integerIn(0, 1<<32-1)),
	}},
	"jobs":  {fields: []field{need("jobs", arrayOf(0, MaxJobs, objectOf(jobShape)))}},
	"error": {fields: []field{need("code", textUpTo(64)), need("message", anyText)}},
}

var completeShape = shape{fields: []field{need("size", anyInteger), need("checksum", isChecksum)}}
var ackShape = shape{fields: []field{need("offset", anyInteger)}}

// sizeShape is a terminal's size in characters.
var sizeShape = shape{fields: []field{need("cols", integerIn(1, maxTerminalSide)), need("rows", integerIn(1, maxTerminalSide))}}

// vsockShape is how the guest sees its vsock.
var vsockShape = shape{fields: []field{
	need("kernel", isFlag), may("module", textUpTo(64)), need("device", isFlag), may("cid", integerIn(0, 1<<32-1)),
	may("port", integerIn(0, 1<<32-1)), may("reason", anyText),
}}

// serialShape is how the guest sees a serial line.
var serialShape = shape{fields: []field{need("name", textUpTo(64)), need("kind", oneOf("port", "uart")), need("up", isFlag)}}

// jobShape is a command with a name.
var jobShape = shape{fields: []field{
	need("job", isToken), need("pid", integerIn(1, maxTimeoutMs)), need("command", textUpTo(MaxPreviewBytes)), need("startedMs", anyInteger),
	need("from", anyInteger), need("to", anyInteger), need("ended", isFlag), need("pty", isFlag), need("attached", isFlag),
}}

var entryShape = shape{fields: []field{
	need("name", anyText), may("rawName", anyText),
	need("type", oneOf("file", "directory", "symlink", "character-device", "block-device", "fifo", "socket")),
	need("size", anyInteger), need("mode", integerIn(0, maxModeBits)), need("uid", anyInteger), need("gid", anyInteger),
	need("mtimeMs", integerIn(-maxInteger, maxInteger)), may("target", anyText),
}}

func shapesOf(direction Direction) map[string]shape {
	if direction == ToGuest {
		return toGuest
	}
	return toHost
}

// objectOf checks an object inside a message.
func objectOf(s shape) check {
	return func(raw json.RawMessage) bool {
		fields := parseObject(raw)
		return fields != nil && s.check(fields) == ""
	}
}

func rangeIsOrdered(fields map[string]json.RawMessage) string {
	newest, _ := parseInteger(fields["protocol"])
	oldest, _ := parseInteger(fields["minProtocol"])
	if oldest > newest {
		return "minProtocol is above protocol"
	}
	return ""
}

// check names what is wrong with a message's fields, "" when nothing is.
func (s shape) check(fields map[string]json.RawMessage) string {
	for _, f := range s.fields {
		raw, sent := fields[f.name]
		switch {
		case !sent && f.required:
			return "no " + f.name
		case sent && !f.check(raw):
			return f.name + " is not as it must be"
		}
	}
	if len(s.exactlyOneOf) > 0 {
		sent := 0
		for _, name := range s.exactlyOneOf {
			if _, ok := fields[name]; ok {
				sent++
			}
		}
		if sent != 1 {
			return "not exactly one of its alternatives"
		}
	}
	if s.also != nil {
		return s.also(fields)
	}
	return ""
}
