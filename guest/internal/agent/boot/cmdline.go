package boot

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Config is what the host wrote on the kernel's command line, as bandsox.NAME=VALUE.
type Config struct {
	Port     uint32   // port=9000: the vsock port to listen on
	Serial   string   // serial=bandsox.agent, a virtio-serial port, or ttyS0, a UART; "": such a port if there is one
	Hostname string   // hostname=
	Root     string   // root=/dev/vda: the image: squashfs, or ext4 of an imported one
	Overlay  string   // overlay=/dev/vdb: the writable layer, ext4; "" keeps it in memory
	PowerOff string   // poweroff=reboot: a VMM that only a reboot ends, such as Firecracker; "": by powering off
	DNS      []string // dns=: addresses, separated by commas
	Hostile  string   // hostile=: for the hostile agent of the tests only
}

// ReadConfig reads /proc/cmdline.
func ReadConfig() (Config, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Config{}, fmt.Errorf("cannot read the kernel's command line: %w", err)
	}
	return ParseConfig(string(text))
}

// ParseConfig understands a kernel command line. Names that it does not know belong to somebody else.
func ParseConfig(commandLine string) (Config, error) {
	config := Config{Port: 9000, Hostname: "bandsox", Root: "/dev/vda"}
	for _, word := range strings.Fields(commandLine) {
		parts := strings.SplitN(word, "=", 2)
		if len(parts) != 2 || parts[1] == "" {
			continue
		}
		value := parts[1]
		switch parts[0] {
		case "bandsox.port":
			port, err := strconv.ParseUint(value, 10, 32)
			if err != nil || port == 0 {
				return config, fmt.Errorf("bandsox.port=%s is no vsock port", value)
			}
			config.Port = uint32(port)
		case "bandsox.serial":
			if strings.ContainsAny(value, "/") || value == "." || value == ".." {
				return config, fmt.Errorf("bandsox.serial=%s is no serial line", value)
			}
			config.Serial = value
		case "bandsox.hostname":
			config.Hostname = value
		case "bandsox.root":
			config.Root = value
		case "bandsox.overlay":
			config.Overlay = value
		case "bandsox.poweroff":
			if value != "reboot" {
				return config, fmt.Errorf("bandsox.poweroff=%s is not reboot", value)
			}
			config.PowerOff = value
		case "bandsox.dns":
			config.DNS = strings.Split(value, ",")
		case "bandsox.hostile":
			config.Hostile = value
		}
	}
	return config, nil
}
