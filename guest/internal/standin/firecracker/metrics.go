package firecracker

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// metricsPeriod is how often a running machine writes a line by itself.
const metricsPeriod = 60 * time.Second

// metrics writes a line of JSON now and then: a few of Firecracker's groups, with its names. Counts are since the line before.
type metrics struct {
	mutex    sync.Mutex
	file     *os.File
	config   metricsConfig
	instance string
	requests map[string]map[string]uint64
	times    map[string]uint64
}

func (m *metrics) open(config metricsConfig) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	file, err := openNonblock(config.MetricsPath)
	if err != nil {
		return refuse("Cannot initialize the metrics system due to bad user input: %s", osError(err))
	}
	if m.file != nil {
		_ = file.Close() // nothing was written
		return refuse("Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed.")
	}
	m.file, m.config = file, config
	return nil
}

// count notes a request, and whether it failed.
func (m *metrics) count(group, name string, isFailure bool) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.requests == nil {
		m.requests = map[string]map[string]uint64{}
	}
	if m.requests[group] == nil {
		m.requests[group] = map[string]uint64{}
	}
	m.requests[group][name+"_count"]++
	if isFailure {
		m.requests[group][name+"_fails"]++
	}
}

// took notes how long something took.
func (m *metrics) took(name string, since time.Time) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.times == nil {
		m.times = map[string]uint64{}
	}
	m.times[name] = uint64(time.Since(since).Microseconds())
}

// flush writes a line, where there is a file for it.
func (m *metrics) flush(devices configFile) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.file == nil {
		return nil
	}
	line := map[string]any{
		"utc_timestamp_ms": time.Now().UnixMilli(),
		"api_server":       map[string]uint64{"process_startup_time_us": 0, "process_startup_time_cpu_us": 0},
		"latencies_us":     m.times,
		"logger":           map[string]uint64{"missed_metrics_count": 0, "metrics_fails": 0, "missed_log_count": 0, "rate_limited_log_count": 0},
		"vcpu":             map[string]uint64{"exit_io_in": 0, "exit_io_out": 0, "exit_mmio_read": 0, "exit_mmio_write": 0, "failures": 0},
		"vmm":              map[string]uint64{"panic_count": 0},
		"signals":          map[string]uint64{"sigbus": 0, "sigsegv": 0, "sigpipe": 0},
		"seccomp":          map[string]uint64{"num_faults": 0},
		"block":            map[string]uint64{"read_bytes": 0, "write_bytes": 0, "read_count": 0, "write_count": 0, "flush_count": 0},
		"net":              map[string]uint64{"rx_bytes_count": 0, "tx_bytes_count": 0, "rx_packets_count": 0, "tx_packets_count": 0},
		"vsock":            map[string]uint64{"rx_bytes_count": 0, "tx_bytes_count": 0, "conns_added": 0, "conns_killed": 0, "conns_removed": 0},
		"uart":             map[string]uint64{"read_count": 0, "write_count": 0, "missed_write_count": 0},
	}
	for group, counts := range m.requests {
		line[group] = counts
	}
	for _, drive := range devices.Drives {
		line["block_"+drive.DriveID] = line["block"]
	}
	for _, network := range devices.NetworkInterfaces {
		line["net_"+network.IfaceID] = line["net"]
	}
	if m.config.EmitID {
		line["id"] = m.instance
	}
	for name, value := range m.config.Properties {
		line[name] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		return refuse("Internal VMM error: Metrics error: %v", err)
	}
	m.requests, m.times = nil, nil
	if _, err := m.file.Write(append(text, '\n')); err != nil {
		return refuse("Internal VMM error: Metrics error: %s", osError(err))
	}
	return nil
}
