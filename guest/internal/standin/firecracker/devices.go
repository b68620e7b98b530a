package firecracker

import (
	"bytes"
	"fmt"
	"net"
	"os"

	"bandsox.dev/guest/internal/standin/hybrid"
)

const (
	maxVcpus = 32
	// maxSocketPath is the bytes of sun_path, its end included.
	maxSocketPath = 108
	// maxInterfaceName is IFNAMSIZ, its end included.
	maxInterfaceName = 16
	minMTU           = 68
)

func (v *vmm) setBootSource(source bootSource) error {
	if err := v.configuring(); err != nil {
		return err
	}
	if err := readable(source.KernelImagePath); err != nil {
		return refuse("Boot source error: The kernel file cannot be opened: %s", osError(err))
	}
	if source.InitrdPath != nil {
		if err := readable(*source.InitrdPath); err != nil {
			return refuse("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. %s", osError(err))
		}
	}
	v.config.BootSource = source
	return nil
}

// checkKernel knows kernels by how they begin. Before 1.17 there were only ELF files.
func (v *vmm) checkKernel(path string) error {
	const bzImageMagicAt = 0x202
	head := make([]byte, bzImageMagicAt+4)
	file, err := os.Open(path)
	if err != nil {
		return refuse("Start microvm error: %s", osError(err))
	}
	defer file.Close() // it was only read
	n, _ := file.Read(head)
	head = head[:n]
	isELF := bytes.HasPrefix(head, []byte("\x7fELF"))
	isBzImage := len(head) > bzImageMagicAt && string(head[bzImageMagicAt:]) == "HdrS"
	if isELF || isBzImage && v.version.AtLeast(1, 17) {
		return nil
	}
	format, reason := "bzImage", "Invalid bzImage"
	if !v.version.AtLeast(1, 17) {
		format, reason = "elf", "Invalid ELF magic number"
	}
	return refuse("Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration or invalid "+
		"kernel image: Kernel Loader: failed to load %s kernel image: %s", format, reason)
}

func (v *vmm) setMachine(update machineUpdate) error {
	if err := v.configuring(); err != nil {
		return err
	}
	config := *v.config.MachineConfig
	if update.VcpuCount != nil {
		config.VcpuCount = *update.VcpuCount
	}
	if update.MemSizeMib != nil {
		config.MemSizeMib = *update.MemSizeMib
	}
	if update.Smt != nil {
		config.Smt = *update.Smt
	}
	if update.CPUTemplate != nil {
		config.CPUTemplate = update.CPUTemplate
		if *update.CPUTemplate == "None" {
			config.CPUTemplate = nil
		}
	}
	if update.TrackDirtyPages != nil {
		config.TrackDirtyPages = *update.TrackDirtyPages
	}
	if update.HugePages != nil {
		config.HugePages = *update.HugePages
	}
	isOdd := config.Smt && config.VcpuCount > 1 && config.VcpuCount%2 == 1
	if config.VcpuCount == 0 || config.VcpuCount > maxVcpus || isOdd {
		return refuse("Machine config error: The number of vCPUs must be greater than 0, less than %d and must be 1 or an even number if SMT "+
			"is enabled.", maxVcpus)
	}
	if config.MemSizeMib == 0 || config.HugePages == "2M" && config.MemSizeMib%2 == 1 {
		return refuse("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.")
	}
	if v.config.Balloon != nil && config.MemSizeMib < uint64(v.config.Balloon.AmountMib) {
		return refuse("Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size.")
	}
	v.config.MachineConfig = &config
	return nil
}

func (v *vmm) putDrive(d drive) error {
	if v.isStarted() && !v.hasPCI {
		return v.hotplugRefusal()
	}
	if !v.isStarted() {
		v.isConfigured = true
	}
	if d.PathOnHost == nil {
		return refuse("Drive config error: Unable to create the virtio block device: Configuration is missing fields or has invalid values.")
	}
	if reason := openDrive(d); reason != "" {
		return refuse("Drive config error: Unable to create the virtio block device: %s", reason)
	}
	for i, other := range v.config.Drives {
		if other.DriveID == d.DriveID {
			v.config.Drives[i] = d
			return nil
		}
		if other.IsRootDevice && d.IsRootDevice {
			return refuse("Drive config error: A root block device already exists!")
		}
	}
	if d.IsRootDevice {
		v.config.Drives = append([]drive{d}, v.config.Drives...)
	} else {
		v.config.Drives = append(v.config.Drives, d)
	}
	return nil
}

// openDrive says why a drive's file cannot be opened as it is to be used.
func openDrive(d drive) string {
	mode := os.O_RDWR
	if d.IsReadOnly != nil && *d.IsReadOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(*d.PathOnHost, mode, 0)
	if err != nil {
		return fmt.Sprintf("Virtio backend error: Error manipulating the backing file: %s %s", osError(err), *d.PathOnHost)
	}
	_ = file.Close() // nothing was written
	return ""
}

func (v *vmm) patchDrive(update driveUpdate) error {
	if err := v.afterStart(); err != nil {
		return err
	}
	for i := range v.config.Drives {
		d := &v.config.Drives[i]
		if d.DriveID != update.DriveID {
			continue
		}
		if update.PathOnHost != nil {
			changed := *d
			changed.PathOnHost = update.PathOnHost
			if reason := openDrive(changed); reason != "" {
				return refuse("Drive config error: Unable to patch the block device: Block: %s Please verify the request arguments.", reason)
			}
			*d = changed
		}
		if update.RateLimiter != nil {
			d.RateLimiter = update.RateLimiter
		}
		return nil
	}
	return refuse("Drive config error: Unable to patch the block device: " + noDevice + " Please verify the request arguments.")
}

func (v *vmm) hotplugRefusal() error {
	if v.version.AtLeast(1, 16) {
		return errNoPCI
	}
	return errAfterStart
}

func (v *vmm) putNetwork(n network) error {
	if v.isStarted() && !v.hasPCI {
		return v.hotplugRefusal()
	}
	if !v.isStarted() {
		v.isConfigured = true
	}
	for _, other := range v.config.NetworkInterfaces {
		if n.GuestMac != nil && other.GuestMac != nil && other.IfaceID != n.IfaceID && *other.GuestMac == *n.GuestMac {
			return refuse("Network config error: The MAC address is already in use: %s", *n.GuestMac)
		}
	}
	if n.MTU != nil && *n.MTU < minMTU {
		return refuse("Network config error: Could not create the network device: MTU %d is out of range [68, 65535]", *n.MTU)
	}
	v.dropNetwork(n.IfaceID)
	if reason := v.openTap(n); reason != "" {
		return refuse("Network config error: Could not create the network device: %s", reason)
	}
	v.config.NetworkInterfaces = append(v.config.NetworkInterfaces, n)
	return nil
}

func (v *vmm) dropNetwork(id string) {
	if tap := v.taps[id]; tap != nil {
		_ = tap.Close() // nobody connects to it
		delete(v.taps, id)
	}
	for i, other := range v.config.NetworkInterfaces {
		if other.IfaceID == id {
			v.config.NetworkInterfaces = append(v.config.NetworkInterfaces[:i:i], v.config.NetworkInterfaces[i+1:]...)
			return
		}
	}
}

// openTap takes the name of a tap, which is one machine's at a time in a network namespace, as an abstract socket is. As with root's
// Firecracker, one that is not there is no error.
func (v *vmm) openTap(n network) string {
	if len(n.HostDevName) >= maxInterfaceName {
		return "Open tap device failed: Invalid interface name"
	}
	tap, err := net.Listen("unix", "@bandsox-stand-in-tap-"+n.HostDevName)
	if err != nil {
		return fmt.Sprintf("Open tap device failed: Error while creating ifreq structure: Device or resource busy (os error 16). Invalid TUN/TAP "+
			"Backend provided by %s. Check our documentation on setting up the network devices.", n.HostDevName)
	}
	v.taps[n.IfaceID] = tap
	return ""
}

func (v *vmm) patchNetwork(update networkUpdate) error {
	if err := v.afterStart(); err != nil {
		return err
	}
	for i := range v.config.NetworkInterfaces {
		n := &v.config.NetworkInterfaces[i]
		if n.IfaceID != update.IfaceID {
			continue
		}
		if update.RxRateLimiter != nil {
			n.RxRateLimiter = update.RxRateLimiter
		}
		if update.TxRateLimiter != nil {
			n.TxRateLimiter = update.TxRateLimiter
		}
		return nil
	}
	return refuse("Network config error: Unable to update the net device: " + noDevice)
}

func (v *vmm) setVsock(config vsock) error {
	if err := v.configuring(); err != nil {
		return err
	}
	if v.config.Vsock != nil {
		v.device.Die()
		v.device = nil
		old := v.config.Vsock.UDSPath
		v.config.Vsock = nil
		if err := os.Remove(old); err != nil {
			return refuse("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: %s", osError(err))
		}
	}
	if reason := v.bindVsock(config.UDSPath, 0); reason != "" {
		return refuse("Vsock config error: Cannot create backend for vsock device: %s", reason)
	}
	config.VsockID = nil
	v.config.Vsock = &config
	return nil
}

// bindVsock says why the socket cannot be made. lastPort is the one that a snapshot has seen last.
func (v *vmm) bindVsock(path string, lastPort uint32) string {
	const binding = "Error binding to the host-side Unix socket: "
	if len(path) >= maxSocketPath {
		return binding + "path must be shorter than SUN_LEN"
	}
	device, err := hybrid.New(path, lastPort, v.gate)
	if err != nil {
		return binding + osError(err)
	}
	v.device = device
	return ""
}

func (v *vmm) setBalloon(b balloon) error {
	if err := v.configuring(); err != nil {
		return err
	}
	if uint64(b.AmountMib) > v.config.MachineConfig.MemSizeMib {
		return refuse("Balloon config error: Amount of pages requested is too large.")
	}
	v.config.Balloon = &b
	return nil
}

// noDevice is said of a device that is not there once the machine has started.
const noDevice = "Failed perform action on device: Device not found"

func (v *vmm) patchBalloon(update balloonUpdate) error {
	if err := v.afterStart(); err != nil {
		return err
	}
	if v.config.Balloon == nil {
		return refuse("Balloon update error: " + noDevice)
	}
	if uint64(update.AmountMib) > v.config.MachineConfig.MemSizeMib {
		return refuse("Balloon update error: Balloon: Requested memory should be less than %dMiB", update.AmountMib)
	}
	v.config.Balloon.AmountMib = update.AmountMib
	return nil
}

func (v *vmm) patchBalloonStats(update balloonStatsUpdate) error {
	if err := v.afterStart(); err != nil {
		return err
	}
	if v.config.Balloon == nil {
		return refuse("Balloon update error: " + noDevice)
	}
	now := v.config.Balloon.StatsPollingIntervalS
	if now != update.StatsPollingIntervalS && (now == 0 || update.StatsPollingIntervalS == 0) {
		return refuse("Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation.")
	}
	v.config.Balloon.StatsPollingIntervalS = update.StatsPollingIntervalS
	return nil
}

func (v *vmm) getBalloon() (any, error) {
	if v.config.Balloon == nil && v.isStarted() {
		return nil, refuse("Internal VMM error: " + noDevice)
	}
	if v.config.Balloon == nil {
		return nil, refuse("Balloon config error: No balloon device found.")
	}
	return *v.config.Balloon, nil
}

// getBalloonStats has a guest that gives at once what it is asked for, and half of the rest free.
func (v *vmm) getBalloonStats() (any, error) {
	const pagesPerMib = 256
	if err := v.afterStart(); err != nil {
		return nil, err
	}
	if v.config.Balloon == nil {
		return nil, refuse("Internal VMM error: " + noDevice)
	}
	if v.config.Balloon.StatsPollingIntervalS == 0 {
		return nil, refuse("Internal VMM error: Balloon: Received stats query when stats are disabled.")
	}
	held := v.config.Balloon.AmountMib
	total := (v.config.MachineConfig.MemSizeMib - uint64(held)) << 20
	return balloonStats{
		TargetPages: held * pagesPerMib, ActualPages: held * pagesPerMib, TargetMib: held, ActualMib: held,
		FreeMemory: total / 2, TotalMemory: total, AvailableMemory: total / 2,
	}, nil
}

func (v *vmm) setMmdsConfig(config mmdsConfig) error {
	if err := v.configuring(); err != nil {
		return err
	}
	if len(config.NetworkInterfaces) == 0 {
		return refuse("MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty.")
	}
	for _, id := range config.NetworkInterfaces {
		isKnown := false
		for _, n := range v.config.NetworkInterfaces {
			isKnown = isKnown || n.IfaceID == id
		}
		if !isKnown {
			return refuse("MMMDS config error: The list of network interface IDs provided contains at least one ID that does not correspond " +
				"to any existing network interface.")
		}
	}
	v.config.MmdsConfig = &config
	if v.mmds == nil {
		v.mmds = map[string]any{}
	}
	return nil
}

// mmdsRefusal is the answer of a running machine without a data store.
func (v *vmm) mmdsRefusal() error {
	if v.isStarted() && v.mmds == nil {
		return refuse("MMDS error: The MMDS data store is not initialized.")
	}
	return nil
}

func (v *vmm) putMmds(value any) error {
	if err := v.mmdsRefusal(); err != nil {
		return err
	}
	v.mmds = value
	return nil
}

// patchMmds merges as RFC 7396 has it.
func (v *vmm) patchMmds(value any) error {
	if err := v.mmdsRefusal(); err != nil {
		return err
	}
	if v.mmds == nil {
		return refuse("MMDS error: The MMDS data store is not initialized.")
	}
	v.mmds = merge(v.mmds, value)
	return nil
}

func merge(into, from any) any {
	changes, isObject := from.(map[string]any)
	if !isObject {
		return from
	}
	merged := map[string]any{}
	if old, isObject := into.(map[string]any); isObject {
		for name, value := range old {
			merged[name] = value
		}
	}
	for name, value := range changes {
		if value == nil {
			delete(merged, name)
		} else {
			merged[name] = merge(merged[name], value)
		}
	}
	return merged
}

// unplug removes a device from a running machine with PCI.
func (v *vmm) unplug(kind, id string) error {
	if err := v.afterStart(); err != nil {
		return err
	}
	if !v.hasPCI {
		return errNoPCI
	}
	for i, d := range v.config.Drives {
		if kind == "drives" && d.DriveID == id {
			if d.IsRootDevice {
				return refuse("Cannot unplug root device")
			}
			v.config.Drives = append(v.config.Drives[:i:i], v.config.Drives[i+1:]...)
			return nil
		}
	}
	for _, n := range v.config.NetworkInterfaces {
		if kind == "network-interfaces" && n.IfaceID == id {
			v.dropNetwork(id)
			return nil
		}
	}
	return refuse("Device not found")
}
