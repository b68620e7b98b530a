package boot

import (
	"os"
	"path/filepath"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
)

// stores are the folders in which container engines lay overlays of their own: an overlay cannot be the upper layer of
// another. Each goes straight to the writable layer, if the image has an engine for it; other images get no new folders.
var stores = []struct {
	name    string
	folder  string
	engines []string
}{
	{"docker", "/var/lib/docker", []string{"dockerd"}},
	{"containerd", "/var/lib/containerd", []string{"containerd"}},
	{"containers", "/var/lib/containers", []string{"podman", "buildah"}},
}

var engineFolders = []string{"/usr/bin/", "/usr/sbin/", "/usr/local/bin/", "/usr/local/sbin/", "/bin/", "/sbin/"}

// MountStores is called inside the new root, with /proc there.
func (r *Root) MountStores() {
	if !r.persistent {
		return // memory would be no better a place than the overlay's own
	}
	for _, store := range stores {
		if !anyExists(store.engines) {
			continue
		}
		source := r.path() + "/stores/" + store.name
		err := makeStore(source)
		if err == nil {
			err = makeStore(store.folder)
		}
		if err == nil {
			err = syscall.Mount(source, store.folder, "", syscall.MS_BIND, "")
		}
		if err != nil {
			console.Printf("cannot keep %s off the overlay: %v", store.folder, err)
		}
	}
}

func anyExists(programs []string) bool {
	for _, folder := range engineFolders {
		for _, program := range programs {
			if _, err := os.Stat(folder + program); err == nil {
				return true
			}
		}
	}
	return false
}

// makeStore makes a folder with the engines' own mode for it, below ordinary ones.
func makeStore(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return makeFolder(path, 0o711)
}
