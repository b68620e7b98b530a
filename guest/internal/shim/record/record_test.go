package record

import (
	"os"
	"testing"
)

func TestARecordThatAPowerCutLeftEmptyIsNone(t *testing.T) {
	inFolder(t, t.TempDir())
	if run, err := ReadRun(); run != nil || err != nil {
		t.Errorf("without a file: %v, %v", run, err)
	}
	for content, fails := range map[string]bool{"": false, "\n": false, "{": true} {
		if err := os.WriteFile(RunFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if run, err := ReadRun(); run != nil || (err != nil) != fails {
			t.Errorf("%q: %v, %v", content, run, err)
		}
	}
}
