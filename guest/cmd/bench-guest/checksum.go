package main

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/json"
	"hash"
	"os"
	"time"

	"github.com/cespare/xxhash/v2"
)

// measureFor is long enough for the emulator to have translated the loop, and for the clock.
const measureFor = time.Second

// printChecksumRates prints {name: bytes per second}, for data in blocks as a transfer has it.
func printChecksumRates() error {
	rates := map[string]float64{}
	for name, sum := range map[string]hash.Hash{"xxh64": xxhash.New(), "md5": md5.New(), "sha256": sha256.New()} {
		rate(sum, measureFor/4) // warm-up
		rates[name] = rate(sum, measureFor)
	}
	return json.NewEncoder(os.Stdout).Encode(rates)
}

func rate(sum hash.Hash, limit time.Duration) float64 {
	block := make([]byte, blockBytes)
	for i := range block {
		block[i] = byte(i * 7)
	}
	started := time.Now()
	for bytes := 0; ; bytes += len(block) {
		if took := time.Since(started); took >= limit {
			return float64(bytes) / took.Seconds()
		}
		_, _ = sum.Write(block) // a hash cannot fail
	}
}
