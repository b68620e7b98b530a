//go:build !amd64

package kvmprobe

import "runtime"

func tryGuest() Result {
	return Result{Reason: "The probe has no guest for " + runtime.GOARCH + "."}
}
