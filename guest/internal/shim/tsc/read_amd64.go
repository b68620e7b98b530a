package tsc

// read returns the processor's time stamp counter.
func read() uint64

const isThere = true
