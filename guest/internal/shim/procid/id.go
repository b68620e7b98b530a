// Package procid names processes so that a reused pid is never taken for the process that was meant.
package procid

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// ID names one process for as long as the machine is up: the kernel reuses pids, but not with the same start time.
type ID struct {
	Pid int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"startTime"`
}

// ErrGone says that the named process does not run any more.
var ErrGone = errors.New("the process is gone")

// Of names the process that has this pid now. A process that has ended and only waits to be reaped is ErrGone.
func Of(pid int) (ID, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// ESRCH: the process ended between open and read.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return ID{}, ErrGone
	}
	if err != nil {
		return ID{}, err
	}
	state, startTime, err := parseStat(stat)
	if err != nil {
		return ID{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	if state == 'Z' || state == 'X' {
		return ID{}, ErrGone
	}
	return ID{Pid: pid, StartTime: startTime}, nil
}

// IsAlive tells whether exactly this process still runs; a zombie does not.
func (id ID) IsAlive() (bool, error) {
	now, err := Of(id.Pid)
	if errors.Is(err, ErrGone) {
		return false, nil
	}
	return now == id, err
}

// parseStat reads state (field 3) and start time (field 22). The command name, field 2, stands in parentheses and may itself
// hold spaces and parentheses, so fields are counted from the last one.
func parseStat(stat []byte) (state byte, startTime uint64, err error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const stateIndex, startTimeIndex = 3 - 3, 22 - 3
	if len(fields) <= startTimeIndex {
		return 0, 0, fmt.Errorf("only %d fields after the command name", len(fields))
	}
	startTime, err = strconv.ParseUint(string(fields[startTimeIndex]), 10, 64)
	return fields[stateIndex][0], startTime, err
}
