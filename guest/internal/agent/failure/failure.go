// Package failure gives an operation's error the code that PROTOCOL.md section 2 has for it.
package failure

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/agent/users"
	"bandsox.dev/guest/internal/wire"
)

// Codes of `error`.
const (
	ProtocolUnsupported = "protocol-unsupported"
	BadRequest          = "bad-request"
	NotFound            = "not-found"
	NotADirectory       = "not-a-directory"
	IsADirectory        = "is-a-directory"
	Exists              = "exists"
	PermissionDenied    = "permission-denied"
	ReadOnly            = "read-only"
	NoSpace             = "no-space"
	NotAFile            = "not-a-file"
	PathInvalid         = "path-invalid"
	ChecksumUnsupported = "checksum-unsupported"
	ChecksumMismatch    = "checksum-mismatch"
	SizeMismatch        = "size-mismatch"
	CommandNotFound     = "command-not-found"
	NotExecutable       = "not-executable"
	ArgumentsTooLong    = "arguments-too-long"
	NoSuchUser          = "no-such-user"
	NoSuchFolder        = "no-such-folder"
	Aborted             = "aborted"
	TransferUnknown     = "transfer-unknown"
	JobUnknown          = "job-unknown"
	JobOver             = "job-over"
	ConnectionRefused   = "connection-refused"
	ConnectionFailed    = "connection-failed"
	Frozen              = "frozen"
	HookFailed          = "hook-failed"
	Stopping            = "stopping"
	Internal            = "internal"
)

// maxMessageBytes is the bound of PROTOCOL.md for an error's text.
const maxMessageBytes = 4096

// Error is an operation's error with its code. The message says what could not be done, to what.
type Error struct {
	Code    string
	Message string
	Cause   error
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Message
	}
	return e.Message + ": " + reason(e.Cause)
}

func (e *Error) Unwrap() error { return e.Cause }

// New makes an error without a deeper cause.
func New(code, format string, args ...interface{}) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Of makes an error whose code follows from the cause.
func Of(cause error, format string, args ...interface{}) *Error {
	var known *Error
	if errors.As(cause, &known) {
		return known
	}
	return &Error{Code: codeOf(cause), Message: fmt.Sprintf(format, args...), Cause: cause}
}

// ToMessage is the protocol's message for an error.
func ToMessage(err error) wire.Failure {
	known := Of(err, "cannot go on")
	text := known.Error()
	if len(text) > maxMessageBytes {
		text = text[:maxMessageBytes]
	}
	return wire.Failure{Type: "error", Code: known.Code, Message: printable(text)}
}

// printable replaces what a protocol's string must not hold: a path in the text may have any bytes.
func printable(text string) string {
	text = strings.ToValidUTF8(text, "?")
	return strings.ReplaceAll(text, "\x00", "?")
}

// reason leaves out the operation and the path that os puts in front of a cause: the message has them already.
func reason(cause error) string {
	var errno syscall.Errno
	if errors.As(cause, &errno) {
		return errno.Error()
	}
	return cause.Error()
}

func codeOf(cause error) string {
	if errors.Is(cause, users.ErrUnknown) {
		return NoSuchUser
	}
	var errno syscall.Errno
	if !errors.As(cause, &errno) {
		return Internal
	}
	switch errno {
	case syscall.ENOENT:
		return NotFound
	case syscall.ENOTDIR:
		return NotADirectory
	case syscall.EISDIR:
		return IsADirectory
	case syscall.EEXIST, syscall.ENOTEMPTY:
		return Exists
	case syscall.EACCES, syscall.EPERM:
		return PermissionDenied
	case syscall.EROFS:
		return ReadOnly
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return NoSpace
	case syscall.ENXIO:
		return NotAFile
	case syscall.ENAMETOOLONG, syscall.ELOOP:
		return PathInvalid
	case syscall.E2BIG:
		return ArgumentsTooLong
	case syscall.ENOEXEC:
		return NotExecutable
	}
	return Internal
}
