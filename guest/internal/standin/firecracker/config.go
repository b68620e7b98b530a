package firecracker

import "encoding/json"

// The bodies of Firecracker's API, written after its description (src/firecracker/swagger/firecracker.yaml) and what its parser takes.
// Tags are those of package strict.

type bootSource struct {
	KernelImagePath string  `json:"kernel_image_path" need:"yes"`
	InitrdPath      *string `json:"initrd_path"`
	BootArgs        *string `json:"boot_args"`
}

type machineConfig struct {
	VcpuCount       uint8   `json:"vcpu_count" need:"yes"`
	MemSizeMib      uint64  `json:"mem_size_mib" need:"yes"`
	Smt             bool    `json:"smt"`
	CPUTemplate     *string `json:"cpu_template,omitempty" one:"C3,T2,T2S,T2CL,T2A,V1N1,None"`
	TrackDirtyPages bool    `json:"track_dirty_pages"`
	HugePages       string  `json:"huge_pages" one:"None,Transparent,2M" default:"None"`
}

type machineUpdate struct {
	VcpuCount       *uint8  `json:"vcpu_count"`
	MemSizeMib      *uint64 `json:"mem_size_mib"`
	Smt             *bool   `json:"smt"`
	CPUTemplate     *string `json:"cpu_template" one:"C3,T2,T2S,T2CL,T2A,V1N1,None"`
	TrackDirtyPages *bool   `json:"track_dirty_pages"`
	HugePages       *string `json:"huge_pages" one:"None,Transparent,2M"`
}

type tokenBucket struct {
	Size         uint64  `json:"size" need:"yes"`
	OneTimeBurst *uint64 `json:"one_time_burst"`
	RefillTime   uint64  `json:"refill_time" need:"yes"`
}

type rateLimiter struct {
	Bandwidth *tokenBucket `json:"bandwidth"`
	Ops       *tokenBucket `json:"ops"`
}

type drive struct {
	DriveID      string       `json:"drive_id" need:"yes"`
	Partuuid     *string      `json:"partuuid"`
	IsRootDevice bool         `json:"is_root_device" need:"yes"`
	CacheType    string       `json:"cache_type" one:"Unsafe,Writeback" default:"Unsafe"`
	IsReadOnly   *bool        `json:"is_read_only"`
	PathOnHost   *string      `json:"path_on_host"`
	RateLimiter  *rateLimiter `json:"rate_limiter"`
	IOEngine     *string      `json:"io_engine" one:"Async,Sync"`
	Socket       *string      `json:"socket"`
}

type driveUpdate struct {
	DriveID     string       `json:"drive_id" need:"yes"`
	PathOnHost  *string      `json:"path_on_host"`
	RateLimiter *rateLimiter `json:"rate_limiter"`
}

type network struct {
	IfaceID       string       `json:"iface_id" need:"yes"`
	HostDevName   string       `json:"host_dev_name" need:"yes"`
	GuestMac      *string      `json:"guest_mac"`
	MTU           *uint16      `json:"mtu" since:"1.16"`
	RxRateLimiter *rateLimiter `json:"rx_rate_limiter"`
	TxRateLimiter *rateLimiter `json:"tx_rate_limiter"`
}

type networkUpdate struct {
	IfaceID       string       `json:"iface_id" need:"yes"`
	RxRateLimiter *rateLimiter `json:"rx_rate_limiter"`
	TxRateLimiter *rateLimiter `json:"tx_rate_limiter"`
}

type vsock struct {
	VsockID  *string `json:"vsock_id,omitempty"`
	GuestCID uint32  `json:"guest_cid" need:"yes"`
	UDSPath  string  `json:"uds_path" need:"yes"`
}

type balloon struct {
	AmountMib             uint32 `json:"amount_mib" need:"yes"`
	DeflateOnOom          bool   `json:"deflate_on_oom" need:"yes"`
	StatsPollingIntervalS uint16 `json:"stats_polling_interval_s"`
	FreePageHinting       bool   `json:"free_page_hinting" since:"1.14"`
	FreePageReporting     bool   `json:"free_page_reporting" since:"1.14"`
}

type balloonUpdate struct {
	AmountMib uint32 `json:"amount_mib" need:"yes"`
}

type balloonStatsUpdate struct {
	StatsPollingIntervalS uint16 `json:"stats_polling_interval_s" need:"yes"`
}

type balloonStats struct {
	TargetPages     uint32 `json:"target_pages"`
	ActualPages     uint32 `json:"actual_pages"`
	TargetMib       uint32 `json:"target_mib"`
	ActualMib       uint32 `json:"actual_mib"`
	SwapIn          uint64 `json:"swap_in"`
	SwapOut         uint64 `json:"swap_out"`
	MajorFaults     uint64 `json:"major_faults"`
	MinorFaults     uint64 `json:"minor_faults"`
	FreeMemory      uint64 `json:"free_memory"`
	TotalMemory     uint64 `json:"total_memory"`
	AvailableMemory uint64 `json:"available_memory"`
	DiskCaches      uint64 `json:"disk_caches"`
}

type entropy struct {
	RateLimiter *rateLimiter `json:"rate_limiter"`
}

type serialPort struct {
	SerialOutPath *string      `json:"serial_out_path"`
	RateLimiter   *tokenBucket `json:"rate_limiter" since:"1.16"`
}

type logger struct {
	LogPath       *string `json:"log_path"`
	Level         *string `json:"level"` // in any case; checked by itself
	ShowLevel     *bool   `json:"show_level"`
	ShowLogOrigin *bool   `json:"show_log_origin"`
	Module        *string `json:"module"`
}

type metricsConfig struct {
	MetricsPath string            `json:"metrics_path" need:"yes"`
	EmitID      bool              `json:"emit_id" since:"1.17"`
	Properties  map[string]string `json:"properties,omitempty" since:"1.17"`
}

func (metricsConfig) TakesUnknownFields() {}

type mmdsConfig struct {
	Version           string   `json:"version" one:"V1,V2" default:"V1"`
	NetworkInterfaces []string `json:"network_interfaces" need:"yes"`
	IPv4Address       *string  `json:"ipv4_address"`
	ImdsCompat        bool     `json:"imds_compat" since:"1.13"`
}

type action struct {
	ActionType string `json:"action_type" need:"yes" one:"FlushMetrics,InstanceStart,SendCtrlAltDel"`
}

type vmState struct {
	State string `json:"state" need:"yes" one:"Paused,Resumed"`
}

type snapshotCreate struct {
	SnapshotType string `json:"snapshot_type" one:"Diff,Full" default:"Full"`
	SnapshotPath string `json:"snapshot_path" need:"yes"`
	MemFilePath  string `json:"mem_file_path" need:"yes"`
}

type memBackend struct {
	BackendPath string `json:"backend_path" need:"yes"`
	BackendType string `json:"backend_type" need:"yes" one:"File,Uffd"`
}

type networkOverride struct {
	IfaceID     string `json:"iface_id" need:"yes"`
	HostDevName string `json:"host_dev_name" need:"yes"`
}

func (networkOverride) TakesUnknownFields() {}

type vsockOverride struct {
	UDSPath string `json:"uds_path" need:"yes"`
}

func (vsockOverride) TakesUnknownFields() {}

type snapshotLoad struct {
	SnapshotPath        string            `json:"snapshot_path" need:"yes"`
	MemFilePath         *string           `json:"mem_file_path"`
	MemBackend          *memBackend       `json:"mem_backend"`
	EnableDiffSnapshots bool              `json:"enable_diff_snapshots"`
	TrackDirtyPages     bool              `json:"track_dirty_pages" since:"1.13"`
	ResumeVM            bool              `json:"resume_vm"`
	NetworkOverrides    []networkOverride `json:"network_overrides" since:"1.12"`
	VsockOverride       *vsockOverride    `json:"vsock_override" since:"1.16"`
	ClockRealtime       bool              `json:"clock_realtime" since:"1.16"`
	HugePages           string            `json:"huge_pages" since:"1.17" one:"Snapshot,None,Transparent,2M" default:"Snapshot"`
}

// configFile is what --config-file holds, and with null for what is not there what GET /vm/config answers.
type configFile struct {
	Balloon           *balloon        `json:"balloon"`
	Drives            []drive         `json:"drives" need:"yes"`
	BootSource        bootSource      `json:"boot-source" need:"yes"`
	CPUConfig         json.RawMessage `json:"cpu-config"`
	Logger            *logger         `json:"logger"`
	MachineConfig     *machineConfig  `json:"machine-config"`
	Metrics           *metricsConfig  `json:"metrics"`
	MmdsConfig        *mmdsConfig     `json:"mmds-config"`
	NetworkInterfaces []network       `json:"network-interfaces"`
	Vsock             *vsock          `json:"vsock"`
	Entropy           *entropy        `json:"entropy"`
	Pmem              []struct{}      `json:"pmem"`
	MemoryHotplug     *struct{}       `json:"memory-hotplug"`
}

func (configFile) TakesUnknownFields() {}
