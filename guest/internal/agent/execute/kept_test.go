package execute

import (
	"bytes"
	"fmt"
	"math/rand"
	"testing"

	"bandsox.dev/guest/internal/wire"
)

func TestKeptOutputComesBackAsItWas(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	var k kept
	var bytesOf []byte // all output, and of each byte its kind
	var kindOf []wire.Kind
	for step := 0; step < 20000; step++ {
		switch random.Intn(3) {
		case 0:
			kind := wire.KindStdout + wire.Kind(random.Intn(2))
			data := make([]byte, 1+random.Intn(300))
			random.Read(data)
			frames := make([]byte, wire.HeaderBytes, 400)
			wire.PutHeader(frames, kind, len(data))
			frames = append(frames, data...)
			frames, err := wire.AppendMessage(frames, wire.Typed{Type: "exit"})
			if err != nil {
				t.Fatal(err)
			}
			if outputBytes(frames) != len(data) {
				t.Fatalf("%d bytes counted, %d are there", outputBytes(frames), len(data))
			}
			k.addFrames(frames)
			for _, b := range data {
				bytesOf, kindOf = append(bytesOf, b), append(kindOf, kind)
			}
		case 1:
			k.forget(k.from + int64(random.Intn(int(k.to()-k.from)+1)))
		case 2:
			if random.Intn(100) == 0 {
				k.compact()
			}
			offset := k.from + int64(random.Intn(int(k.to()-k.from)+1))
			for offset < k.to() {
				frames, next := k.appendFrames(make([]byte, 0, 6+random.Intn(500)), offset)
				if next == offset {
					t.Fatal("no progress")
				}
				for at := offset; len(frames) > 0; {
					kind, payload, rest := nextFrame(frames)
					if !bytes.Equal(payload, bytesOf[at:at+int64(len(payload))]) || kindOf[at] != kind || kindOf[at+int64(len(payload))-1] != kind {
						t.Fatalf("other output at %d", at)
					}
					at += int64(len(payload))
					frames = rest
				}
				offset = next
			}
		}
		if k.to() != int64(len(bytesOf)) {
			t.Fatalf("%d bytes in all, %d were meant", k.to(), len(bytesOf))
		}
	}
}

func TestKeptOutputOfSingleBytesTakesLittleRoom(t *testing.T) {
	var k kept
	for i := 0; i < 1<<20; i++ {
		k.add(wire.KindStdout, []byte{1})
	}
	if len(k.runs) != 1 || cap(k.buf) > 2<<20 {
		t.Fatalf("%d runs, room for %d bytes", len(k.runs), cap(k.buf))
	}
	// What is acknowledged makes room for what comes.
	for i := 0; i < 100; i++ {
		k.forget(k.to())
		k.add(wire.KindStderr, make([]byte, 1<<20))
	}
	if len(k.runs) != 1 || cap(k.buf) > 2<<20 {
		t.Fatalf("%d runs, room for %d bytes", len(k.runs), cap(k.buf))
	}
	k.forget(k.to() - 3)
	if bytes := k.compact(); bytes > 100 || k.to()-k.from != 3 || len(k.runs) != 1 {
		t.Fatalf("%d bytes for %d", bytes, k.to()-k.from)
	}
}

func TestOnlyTheLastNamesAreRemembered(t *testing.T) {
	var jobs Jobs
	jobs.known = map[string]*job{}
	name := func(i int) string { return fmt.Sprintf("job-number-%06d", i) }
	for i := 0; i < maxOver+2; i++ {
		j := newJob(name(i), 0, &jobs)
		jobs.known[j.name] = j
		jobs.forget(j)
		jobs.forget(j) // harmless
	}
	if len(jobs.over) != maxOver || len(jobs.order) != maxOver || jobs.over[name(1)] || !jobs.over[name(2)] {
		t.Fatalf("%d and %d names", len(jobs.over), len(jobs.order))
	}
}
