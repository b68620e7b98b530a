package boot

import (
	"errors"
	"io/fs"
	"os"

	"bandsox.dev/guest/internal/agent/console"
)

// EndThrashing lets the kernel kill for lack of memory as soon as the programs that run cannot keep their last second's pages.
// Without it, a machine without swap drops the code of its programs and reads it back from the disk over and over: commands stand
// still for minutes before the kernel gives one up (40 s and more were seen with 256 MiB, 4 s with this). Kernel
// documentation, admin-guide/mm/multigen_lru.rst, "Thrashing prevention".
func EndThrashing() {
	for _, setting := range []struct{ file, value string }{
		{"/sys/kernel/mm/lru_gen/enabled", "y"},
		{"/sys/kernel/mm/lru_gen/min_ttl_ms", "1000"},
	} {
		err := os.WriteFile(setting.file, []byte(setting.value), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return // a kernel without it
		}
		if err != nil {
			console.Printf("cannot set %s: %v", setting.file, err)
		}
	}
}
