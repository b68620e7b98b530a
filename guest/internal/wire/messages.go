package wire

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The messages that a guest sends, as structs whose JSON is the message. Each has its type filled in by its constructor or
// by Typed.

// Typed is a message without fields: pong's and hello's siblings such as stopping, eof or abort.
type Typed struct {
	Type string `json:"type"`
}

// Hello answers the host's hello.
type Hello struct {
	Type         string           `json:"type"`
	Protocol     int64            `json:"protocol"`
	Agent        string           `json:"agent"`
	BootID       string           `json:"bootId"`
	Capabilities []string         `json:"capabilities"`
	Checksums    []string         `json:"checksums"`
	Stages       map[string]int64 `json:"stages,omitempty"`
}

// Pong answers a ping.
type Pong struct {
	Type     string `json:"type"`
	UptimeMs int64  `json:"uptimeMs"`
}

// Started says that a command runs.
type Started struct {
	Type string `json:"type"`
	Pid  int    `json:"pid"`
}

// Attached says that a connection has taken a command over that runs already, or has run.
type Attached struct {
	Type        string `json:"type"`
	Pid         int    `json:"pid"`
	Offset      int64  `json:"offset"`
	InputOffset int64  `json:"inputOffset"`
}

// Exit says how a command ended: by Code, or by Signal when that is set.
type Exit struct {
	Type     string `json:"type"`
	Code     *int   `json:"code,omitempty"`
	Signal   string `json:"signal,omitempty"`
	TimedOut bool   `json:"timedOut,omitempty"`
}

// UploadReady lets the host send.
type UploadReady struct {
	Type        string `json:"type"`
	ChunkBytes  int    `json:"chunkBytes"`
	WindowBytes int64  `json:"windowBytes"`
	Offset      int64  `json:"offset"`
}

// DownloadReady goes ahead of a file's data.
type DownloadReady struct {
	UploadReady
	Size    int64  `json:"size"`
	Mode    uint32 `json:"mode"`
	MtimeMs int64  `json:"mtimeMs"`
}

// Ack says how far the receiver has come.
type Ack struct {
	Type   string `json:"type"`
	Offset int64  `json:"offset"`
}

// Complete ends a transfer.
type Complete struct {
	Type     string `json:"type"`
	Size     int64  `json:"size"`
	Checksum string `json:"checksum"`
}

// Entry describes a file.
type Entry struct {
	Name    string `json:"name"`
	RawName []byte `json:"rawName,omitempty"` // encoding/json writes bytes as base64
	Type    string `json:"type"`
	Size    int64  `json:"size"`
	Mode    uint32 `json:"mode"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	MtimeMs int64  `json:"mtimeMs"`
	Target  string `json:"target,omitempty"`
}

// Info answers a stat.
type Info struct {
	Type string `json:"type"`
	File Entry  `json:"file"`
}

// Listed ends a list.
type Listed struct {
	Type  string `json:"type"`
	Count int64  `json:"count"`
}

// Links says how the guest sees its links.
type Links struct {
	Type   string       `json:"type"`
	Vsock  VsockLink    `json:"vsock"`
	Serial []SerialLine `json:"serial"` // not nil: it is an array, also an empty one
}

// VsockLink is how the guest sees its vsock.
type VsockLink struct {
	Kernel bool   `json:"kernel"`
	Module string `json:"module,omitempty"`
	Device bool   `json:"device"`
	// CID and Port are nil where there is none.
	CID    *uint32 `json:"cid,omitempty"`
	Port   *uint32 `json:"port,omitempty"`
	Reason string  `json:"reason,omitempty"`
}

// SerialLine is how the guest sees a serial line.
type SerialLine struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // port or uart
	Up   bool   `json:"up"`
}

// Frozen says that all processes stand still.
type Frozen struct {
	Type      string           `json:"type"`
	Processes int              `json:"processes"`
	StagesUs  map[string]int64 `json:"stagesUs"`
	Warnings  []string         `json:"warnings"` // not nil, like Failures and Jobs
}

// Identified says what became of an identity.
type Identified struct {
	Type     string           `json:"type"`
	StagesUs map[string]int64 `json:"stagesUs"`
	Failures []string         `json:"failures"`
	// Port is the one listened on by vsock, 0 where nobody listens by a port.
	Port uint32 `json:"port"`
}

// Jobs lists commands that have a name.
type Jobs struct {
	Type string `json:"type"`
	Jobs []Job  `json:"jobs"`
}

// Job is a command that has a name.
type Job struct {
	Job       string `json:"job"`
	Pid       int    `json:"pid"`
	Command   string `json:"command"`
	StartedMs int64  `json:"startedMs"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
	Ended     bool   `json:"ended"`
	Pty       bool   `json:"pty"`
	Attached  bool   `json:"attached"`
}

// maxJobsBytes leaves room for the rest of the message. What a person typed may take six times its length as JSON.
const maxJobsBytes = MaxMessageBytes - 1024

// ListOf makes of commands a message, as many of the first ones as fit into it.
func ListOf(jobs []Job) (Jobs, error) {
	list := Jobs{Type: "jobs", Jobs: []Job{}}
	size := 0
	for _, job := range jobs {
		text, err := json.Marshal(job)
		if err != nil {
			return list, err
		}
		if size += len(text) + 1; size > maxJobsBytes || len(list.Jobs) == MaxJobs {
			break
		}
		list.Jobs = append(list.Jobs, job)
	}
	return list, nil
}

// Remarks makes sentences fit into a message: their number, their lengths, and what no string may hold.
func Remarks(texts []string) []string {
	if len(texts) > MaxRemarks {
		texts = append(texts[:MaxRemarks-1:MaxRemarks-1], fmt.Sprintf("and %d more", len(texts)-MaxRemarks+1))
	}
	fit := make([]string, len(texts))
	for i, text := range texts {
		fit[i] = Cut(text, MaxRemarkBytes)
	}
	return fit
}

// Cut makes of any bytes a string for a message, of so many bytes at most.
func Cut(text string, maxBytes int) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?")
	if len(text) <= maxBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxBytes], "")
}

// Failure is an error message.
type Failure struct {
	Type    string `json:"type"`
	Code    string `json:"code"`
	Message string `json:"message"`
}
