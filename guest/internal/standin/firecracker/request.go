package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"bandsox.dev/guest/internal/standin/strict"
)

// response is the answer to a request.
type response struct {
	status int
	body   any // nil: none
	// isDeprecated says so in a header.
	isDeprecated bool
	// isFatal ends the process once the answer is out.
	isFatal bool
}

const (
	methodGet    = "GET"
	methodPut    = "PUT"
	methodPatch  = "PATCH"
	methodDelete = "DELETE"
)

// counters are the names of requests in the metrics, where they have one.
var counters = map[string]string{
	"actions": "actions", "boot-source": "boot_source", "drives": "drive", "logger": "logger", "machine-config": "machine_cfg",
	"metrics": "metrics", "mmds": "mmds", "network-interfaces": "network", "serial": "serial", "vsock": "vsock", "": "instance_info",
	"version": "vmm_version",
}

// handle answers one request; the next one waits for it.
func (v *vmm) handle(method, path string, body []byte) response {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if v.faults.APISlow > 0 {
		time.Sleep(v.faults.APISlow)
	}
	v.log.info("The API server received a %q request on %q.", method, path)
	v.stumble(method, path, body)
	words := strings.Split(strings.Trim(path, "/"), "/")
	began := time.Now()
	r := &request{vmm: v, method: method, words: words, body: body}
	result, err := r.answer()
	v.count(method, words, err != nil)
	if err == nil {
		v.measure(method, path, body, began)
		answer := response{status: statusWithBody, body: result, isDeprecated: r.isDeprecated}
		if result == nil {
			answer.status = statusNoBody
		}
		v.log.info("The request was executed successfully. Status code: %d.", answer.status)
		return answer
	}
	v.log.error("Received Error. Status code: 400 Bad Request. Message: %v", err)
	var refusal *fault
	isFatal := errors.As(err, &refusal) && refusal.isFatal
	return response{statusBadRequest, map[string]string{"fault_message": err.Error()}, r.isDeprecated, isFatal}
}

// stumble is where the faults of a step happen. A step is "PUT /vsock", or the name of an action.
func (v *vmm) stumble(method, path string, body []byte) {
	steps := []string{method + " " + path}
	var named action
	if path == "/actions" && json.Unmarshal(body, &named) == nil {
		steps = append(steps, named.ActionType)
	}
	for _, step := range steps {
		if step == v.faults.CrashAt {
			v.crash(step)
		}
		if step == v.faults.HangAt {
			select {} // with the lock: like the real one, whose only loop this would be
		}
	}
}

func (v *vmm) count(method string, words []string, isFailure bool) {
	groups := map[string]string{methodGet: "get_api_requests", methodPut: "put_api_requests", methodPatch: "patch_api_requests"}
	if name, isCounted := counters[words[0]]; isCounted && groups[method] != "" {
		v.metrics.count(groups[method], name, isFailure)
	}
}

func (v *vmm) measure(method, path string, body []byte, began time.Time) {
	switch method + " " + path {
	case "PUT /snapshot/load":
		v.metrics.took("load_snapshot", began)
	case "PUT /snapshot/create":
		if strings.Contains(string(body), `"Diff"`) {
			v.metrics.took("diff_create_snapshot", began)
		} else {
			v.metrics.took("full_create_snapshot", began)
		}
	case "PATCH /vm":
		if v.state == paused {
			v.metrics.took("pause_vm", began)
		} else {
			v.metrics.took("resume_vm", began)
		}
	}
}

// request is one that is being answered.
type request struct {
	vmm          *vmm
	method       string
	words        []string // of the path
	body         []byte
	isDeprecated bool
}

func (r *request) word(i int) string {
	if i < len(r.words) {
		return r.words[i]
	}
	return ""
}

func (r *request) unknown(path string) error {
	return refuse("Invalid request method and/or path: %s %s.", r.method, path)
}

// read fills the structure of a body.
func (r *request) read(into any) error {
	if err := strict.Decode(r.body, into, r.vmm.version); err != nil {
		return refuse("An error occurred when deserializing the json body of a request: %v.", err)
	}
	return nil
}

// id is that of the path, which must be the body's.
func (r *request) id() (string, error) {
	id := r.word(1)
	if id == "" {
		return "", refuse("The ID cannot be empty.")
	}
	for _, c := range id {
		if c != '_' && !unicode.IsLetter(c) && !unicode.IsNumber(c) {
			return "", refuse("API Resource IDs can only contain alphanumeric characters and underscores.")
		}
	}
	return id, nil
}

// answer gives a body, or nil for none.
func (r *request) answer() (any, error) {
	if len(r.body) > 0 && (r.method == methodGet || r.method == methodDelete) {
		if r.method == methodDelete {
			return nil, refuse("Empty Delete request.") // so it says
		}
		return nil, refuse("GET request cannot have a body.")
	}
	switch r.method {
	case methodGet:
		return r.get()
	case methodPut:
		if len(r.body) == 0 {
			return nil, refuse("Empty PUT request.")
		}
		return nil, r.put()
	case methodPatch:
		if len(r.body) == 0 && r.words[0] != "balloon" {
			return nil, refuse("Empty PATCH request.")
		}
		return nil, r.patch()
	case methodDelete:
		if kind := r.words[0]; kind == "drives" || kind == "network-interfaces" {
			id, err := r.id()
			if err != nil {
				return nil, err
			}
			return nil, r.vmm.unplug(kind, id)
		}
	}
	return nil, r.unknown(r.words[0])
}

func (r *request) get() (any, error) {
	v := r.vmm
	switch {
	case r.words[0] == "":
		return map[string]string{"id": v.id, "state": v.state, "vmm_version": v.release, "app_name": "Firecracker"}, nil
	case r.words[0] == "version":
		return map[string]string{"firecracker_version": v.release}, nil
	case r.words[0] == "machine-config":
		return *v.config.MachineConfig, nil
	case r.words[0] == "vm" && r.word(1) == "config":
		return v.shownConfig(), nil
	case r.words[0] == "balloon" && r.word(1) == "statistics":
		return v.getBalloonStats()
	case r.words[0] == "balloon" && r.word(1) == "":
		return v.getBalloon()
	case r.words[0] == "balloon":
		return nil, refuse("Unrecognized GET request path `%s`.", r.word(1))
	case r.words[0] == "mmds":
		if err := v.mmdsRefusal(); err != nil {
			return nil, err
		}
		if v.mmds == nil {
			return struct{}{}, nil
		}
		return v.mmds, nil
	}
	return nil, r.unknown(r.words[0])
}

// shownConfig is without what a snapshot does not keep.
func (v *vmm) shownConfig() configFile {
	shown := v.config
	if v.isLoaded {
		shown.BootSource = bootSource{}
	}
	return shown
}

func (r *request) put() error {
	v := r.vmm
	switch r.words[0] {
	case "actions":
		return r.act()
	case "boot-source":
		return with(r, v.setBootSource)
	case "cpu-config":
		return with(r, v.setCPU)
	case "machine-config":
		return with(r, r.putMachine)
	case "drives":
		return withID(r, func(d drive) string { return d.DriveID }, "The id from the path does not match the id from the body!", v.putDrive)
	case "network-interfaces":
		return withID(r, func(n network) string { return n.IfaceID }, "", v.putNetwork)
	case "vsock":
		return with(r, func(config vsock) error {
			r.isDeprecated = config.VsockID != nil
			return v.setVsock(config)
		})
	case "entropy":
		return with(r, func(config entropy) error {
			if err := v.configuring(); err != nil {
				return err
			}
			v.config.Entropy = &config
			return nil
		})
	case "balloon":
		return with(r, v.setBalloon)
	case "logger":
		return with(r, v.setLogger)
	case "metrics":
		return with(r, v.setMetrics)
	case "serial":
		if v.version.AtLeast(1, 14) {
			return with(r, v.setSerial)
		}
	case "mmds":
		return r.putMmds()
	case "snapshot":
		return r.putSnapshot()
	}
	return r.unknown(r.words[0])
}

func (r *request) patch() error {
	v := r.vmm
	switch r.words[0] {
	case "vm":
		return with(r, func(wanted vmState) error {
			if wanted.State == "Paused" {
				return v.pause()
			}
			return v.resume()
		})
	case "machine-config":
		return with(r, func(update machineUpdate) error {
			if update == (machineUpdate{}) {
				return refuse("Empty PATCH request.")
			}
			return v.setMachine(update)
		})
	case "drives":
		return withID(r, func(d driveUpdate) string { return d.DriveID }, "The id from the path does not match the id from the body!", v.patchDrive)
	case "network-interfaces":
		return withID(r, func(n networkUpdate) string { return n.IfaceID }, "", v.patchNetwork)
	case "balloon":
		if len(r.body) == 0 {
			return refuse("Empty PATCH request.")
		}
		if r.word(1) == "statistics" {
			return with(r, v.patchBalloonStats)
		}
		return with(r, v.patchBalloon)
	case "mmds":
		value, err := r.value()
		if err != nil {
			return err
		}
		return v.patchMmds(value)
	}
	return r.unknown(r.words[0])
}

// with reads the body and does what is asked.
func with[T any](r *request, do func(T) error) error {
	var body T
	if err := r.read(&body); err != nil {
		return err
	}
	return do(body)
}

// withID is with for a path that ends in an id. mismatch is what is said when the body has another; "": both are named.
func withID[T any](r *request, idOf func(T) string, mismatch string, do func(T) error) error {
	id, err := r.id()
	if err != nil {
		return err
	}
	return with(r, func(body T) error {
		if id == idOf(body) {
			return do(body)
		}
		if mismatch == "" {
			mismatch = fmt.Sprintf("The id from the path [%s] does not match the id from the body [%s]!", id, idOf(body))
		}
		return refuse("%s", mismatch)
	})
}

func (r *request) act() error {
	return with(r, func(asked action) error {
		v := r.vmm
		switch asked.ActionType {
		case "InstanceStart":
			return v.start()
		case "FlushMetrics":
			if err := v.afterStart(); err != nil {
				return err
			}
			return v.metrics.flush(v.config)
		}
		if err := v.afterStart(); err != nil {
			return err
		}
		time.AfterFunc(keyboardTime, v.machine.Press)
		return nil
	})
}

// keyboardTime is what a guest takes to hear ctrl-alt-del; the real one's end came after 0.4 s.
const keyboardTime = 50 * time.Millisecond

func (r *request) putMachine(config machineConfig) error {
	r.isDeprecated = config.CPUTemplate != nil
	return r.vmm.setMachine(machineUpdate{
		&config.VcpuCount, &config.MemSizeMib, &config.Smt, config.CPUTemplate, &config.TrackDirtyPages, &config.HugePages,
	})
}

func (v *vmm) setCPU(json.RawMessage) error { return v.beforeStart() }

func (v *vmm) setLogger(config logger) error {
	if err := v.beforeStart(); err != nil {
		return err
	}
	if config.Level != nil && !isLevel(*config.Level) {
		return refuse("An error occurred when deserializing the json body of a request: unknown variant `%s`.", *config.Level)
	}
	if err := v.log.update(config); err != nil {
		return refuse("Logger error: %v", err)
	}
	return nil
}

func (v *vmm) setMetrics(config metricsConfig) error {
	if err := v.beforeStart(); err != nil {
		return err
	}
	if err := v.metrics.open(config); err != nil {
		return refuse("Metrics error: %v", err)
	}
	return nil
}

func (v *vmm) setSerial(config serialPort) error {
	if err := v.beforeStart(); err != nil {
		return err
	}
	v.serial = config
	return nil
}

func (r *request) value() (value any, err error) {
	if err := json.Unmarshal(r.body, &value); err != nil {
		return nil, refuse("An error occurred when deserializing the json body of a request: expected value at line 1 column 1.")
	}
	return value, nil
}

func (r *request) putMmds() error {
	switch r.word(1) {
	case "":
		value, err := r.value()
		if err != nil {
			return err
		}
		return r.vmm.putMmds(value)
	case "config":
		return with(r, func(config mmdsConfig) error {
			r.isDeprecated = config.Version == "V1"
			return r.vmm.setMmdsConfig(config)
		})
	}
	return refuse("Unrecognized PUT request path `%s`.", r.word(1))
}

func (r *request) putSnapshot() error {
	switch r.word(1) {
	case "create":
		return with(r, r.vmm.createSnapshot)
	case "load":
		return with(r, r.load)
	case "":
		return refuse("Missing snapshot operation type.")
	}
	return r.unknown("/snapshot/" + r.word(1))
}

func (r *request) load(asked snapshotLoad) error {
	const inBody = "An error occurred when deserializing the json body of a request: "
	if asked.MemBackend != nil && asked.MemFilePath != nil {
		return refuse(inBody + "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.")
	}
	if asked.MemBackend == nil && asked.MemFilePath == nil {
		return refuse(inBody + "missing field: either `mem_backend` or `mem_file_path` is required.")
	}
	r.isDeprecated = asked.MemFilePath != nil || asked.EnableDiffSnapshots && r.vmm.version.AtLeast(1, 13)
	return r.vmm.loadSnapshot(asked)
}
