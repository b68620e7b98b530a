package transfer

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"hash"

	"github.com/cespare/xxhash/v2"

	"bandsox.dev/guest/internal/agent/failure"
)

// Checksums are the algorithms' names, quickest first.
var Checksums = []string{"xxh64", "md5", "sha256"}

func newChecksum(name string) (hash.Hash, error) {
	switch name {
	case "xxh64":
		return xxhash.New(), nil // seed 0; Sum gives the digest big-endian
	case "md5":
		return md5.New(), nil
	case "sha256":
		return sha256.New(), nil
	}
	return nil, failure.New(failure.ChecksumUnsupported, "checksum %.40q is not known, only %v", name, Checksums)
}

func digest(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }
