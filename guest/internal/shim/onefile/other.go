//go:build !amd64

package onefile

// Install is written for the architecture that BandSox runs on.
func Install() (listener int, err error) { return -1, ErrUnsupported }

// Supply is of no use here.
func Supply(_ int, _ string) error { return ErrUnsupported }
