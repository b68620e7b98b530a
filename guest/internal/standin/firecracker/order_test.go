package firecracker_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const (
	beforeStart = "The requested operation is not supported before starting the microVM."
	afterStart  = "The requested operation is not supported after starting the microVM."
)

func TestBeforeTheStartAMachineOnlyTakesItsConfiguration(t *testing.T) {
	v := start(t, "--id", "sbx-1")
	if _, answer := v.call("GET", "/", nil); answer["id"] != "sbx-1" || answer["vmm_version"] != "1.17.0" || answer["app_name"] != "Firecracker" {
		t.Errorf("it is %v", answer)
	}
	if _, answer := v.call("GET", "/version", nil); answer["firecracker_version"] != "1.17.0" {
		t.Errorf("its version is %v", answer)
	}
	v.wantState("Not started")
	v.wantFault("PATCH", "/vm", state("Paused"), beforeStart)
	v.wantFault("PATCH", "/vm", state("Resumed"), beforeStart)
	v.wantFault("PUT", "/snapshot/create", object{"snapshot_path": "s", "mem_file_path": "m"}, beforeStart)
	v.wantFault("PUT", "/actions", action("FlushMetrics"), beforeStart)
	v.wantFault("PUT", "/actions", action("SendCtrlAltDel"), beforeStart)
	v.wantFault("GET", "/balloon/statistics", nil, beforeStart)
	v.wantFault("PATCH", "/balloon", object{"amount_mib": 1}, beforeStart)
	v.wantFault("PATCH", "/drives/root", object{"drive_id": "root"}, beforeStart)
	v.wantFault("PUT", "/actions", action("InstanceStart"), "Start microvm error: Cannot start microvm without kernel configuration.")
	v.configure(bootArguments)
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.wantState("Running")
}

func TestAfterTheStartNoConfigurationIsTaken(t *testing.T) {
	v := booted(t)
	load := object{"snapshot_path": "s", "mem_backend": object{"backend_type": "File", "backend_path": "m"}}
	v.wantFault("PUT", "/actions", action("InstanceStart"), afterStart)
	v.wantFault("PUT", "/machine-config", object{"vcpu_count": 1, "mem_size_mib": 16}, afterStart)
	v.wantFault("PUT", "/boot-source", v.bootSource(""), afterStart)
	v.wantFault("PUT", "/vsock", object{"guest_cid": 3, "uds_path": "w.sock"}, afterStart)
	v.wantFault("PUT", "/entropy", object{}, afterStart)
	v.wantFault("PUT", "/logger", object{}, afterStart)
	v.wantFault("PUT", "/metrics", object{"metrics_path": "m"}, afterStart)
	v.wantFault("PUT", "/snapshot/load", load, afterStart)
	v.wantFault("PUT", "/drives/x", object{"drive_id": "x", "is_root_device": false}, "PCI is not enabled")
	v.wantFault("PUT", "/network-interfaces/x", object{"iface_id": "x", "host_dev_name": "t"}, "PCI is not enabled")
	v.wantState("Running")
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantState("Paused")
	v.wantDone("PATCH", "/vm", state("Resumed"))
	v.wantDone("PATCH", "/vm", state("Resumed"))
	v.wantState("Running")
}

func TestWrongRequestsAreRefusedInFirecrackersWords(t *testing.T) {
	v := start(t)
	const inBody = "An error occurred when deserializing the json body of a request: "
	const vcpus = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
	const binding = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: "
	v.write("taken.sock", "")
	for _, c := range []struct {
		method, path string
		body         any
		words        string
	}{
		{"PUT", "/nope", object{}, "Invalid request method and/or path: PUT nope."},
		{"GET", "/nope", nil, "Invalid request method and/or path: GET nope."},
		{"PUT", "/snapshot/nope", object{}, "Invalid request method and/or path: PUT /snapshot/nope."},
		{"PUT", "/vsock", nil, "Empty PUT request."},
		{"PATCH", "/vm", nil, "Empty PATCH request."},
		{"GET", "/", object{}, "GET request cannot have a body."},
		{"PUT", "/machine-config", object{"vcpu_count": 0, "mem_size_mib": 16}, vcpus},
		{"PUT", "/machine-config", object{"vcpu_count": 33, "mem_size_mib": 16}, vcpus},
		{"PUT", "/machine-config", object{"vcpu_count": 3, "mem_size_mib": 16, "smt": true}, vcpus},
		{"PUT", "/machine-config", object{"vcpu_count": 1, "mem_size_mib": 0}, "Machine config error: The memory size (MiB) is either 0"},
		{"PUT", "/machine-config", object{"vcpu_count": 1}, inBody + "missing field `mem_size_mib`"},
		{"PUT", "/machine-config", object{"cpus": 1}, inBody + "unknown field `cpus`, expected one of `vcpu_count`"},
		{"PATCH", "/machine-config", object{}, "Empty PATCH request."},
		{"PUT", "/boot-source", object{"kernel_image_path": "/nope"}, "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"},
		{
			"PUT", "/boot-source", object{"kernel_image_path": v.path("kernel"), "initrd_path": "/nope"},
			"Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. No such file or directory (os error 2)",
		},
		{
			"PUT", "/drives/x", object{"drive_id": "x", "is_root_device": false, "path_on_host": "/nope/disk"},
			"Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: No such file or directory (os error 2) /nope/disk",
		},
		{"PUT", "/drives/x", object{"drive_id": "y", "is_root_device": false}, "The id from the path does not match the id from the body!"},
		{"PUT", "/drives/x-y", object{"drive_id": "x-y", "is_root_device": false}, "API Resource IDs can only contain alphanumeric characters and underscores."},
		{"PUT", "/drives", object{}, "The ID cannot be empty."},
		{"PUT", "/network-interfaces/a", object{"iface_id": "b", "host_dev_name": "t"}, "The id from the path [a] does not match the id from the body [b]!"},
		{"PUT", "/network-interfaces/a", object{"iface_id": "a", "host_dev_name": "a-name-that-is-too-long"}, "Open tap device failed: Invalid interface name"},
		{"PUT", "/vsock", object{"guest_cid": 3, "uds_path": "taken.sock"}, binding + "Address already in use (os error 98)"},
		{"PUT", "/vsock", object{"guest_cid": 3, "uds_path": "nope/v.sock"}, binding + "No such file or directory (os error 2)"},
		{"PUT", "/vsock", object{"guest_cid": 3, "uds_path": strings.Repeat("x", 108)}, binding + "path must be shorter than SUN_LEN"},
		{"PUT", "/vsock", object{"guest_cid": 3, "uds_path": "v.sock", "x": 1}, inBody + "unknown field `x`"},
		{"PUT", "/actions", action("Nope"), inBody + "unknown variant `Nope`"},
		{"PUT", "/balloon", object{"amount_mib": 1000, "deflate_on_oom": false}, "Balloon config error: Amount of pages requested is too large."},
		{"GET", "/balloon", nil, "Balloon config error: No balloon device found."},
		{"PUT", "/mmds/config", object{"network_interfaces": []string{"x"}}, "MMMDS config error: The list of network interface IDs provided contains at least one"},
		{"PUT", "/snapshot/load", object{"snapshot_path": "s"}, "missing field: either `mem_backend` or `mem_file_path` is required."},
		{"PUT", "/vm", "{", "Invalid request method and/or path: PUT vm."},
	} {
		v.wantFault(c.method, c.path, c.body, c.words)
	}
	v.wantState("Not started")
}

func TestWhatIsNoKernelIsFoundAtTheStartAndTheProcessLivesOn(t *testing.T) {
	v := start(t)
	v.write("kernel", "#!/bin/sh")
	v.configure(bootArguments)
	v.wantFault("PUT", "/actions", action("InstanceStart"), "Cannot load kernel due to invalid memory configuration or invalid kernel image: ")
	v.write("kernel", strings.Repeat("\x00", 0x202)+"HdrS and more")
	v.wantDone("PUT", "/actions", action("InstanceStart"))
}

func TestATapIsOneMachines(t *testing.T) {
	first, second := start(t), start(t)
	tap := func(name string) object { return object{"iface_id": "eth0", "host_dev_name": name} }
	name := fmt.Sprint("tap", os.Getpid()) // other tests of this host may be at work
	first.wantDone("PUT", "/network-interfaces/eth0", tap(name))
	second.wantFault("PUT", "/network-interfaces/eth0", tap(name), "Device or resource busy (os error 16)")
	first.wantDone("PUT", "/network-interfaces/eth0", tap(name+"b"))
	second.wantDone("PUT", "/network-interfaces/eth0", tap(name))
}

func TestVsockMayBeConfiguredAgainBeforeTheStart(t *testing.T) {
	v := start(t)
	v.wantDone("PUT", "/vsock", object{"guest_cid": 3, "uds_path": "old.sock"})
	v.wantDone("PUT", "/vsock", object{"guest_cid": 4, "uds_path": "v.sock"})
	if _, err := os.Stat(v.path("old.sock")); err == nil {
		t.Error("the old socket is still there")
	}
	if _, config := v.call("GET", "/vm/config", nil); config["vsock"].(map[string]any)["guest_cid"] != 4. {
		t.Errorf("the configuration is %v", config)
	}
}

func TestBalloonIsSetAndChanged(t *testing.T) {
	v := start(t)
	v.configure(bootArguments)
	v.wantDone("PUT", "/balloon", object{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1})
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.wantDone("PATCH", "/balloon", object{"amount_mib": 4})
	v.wantFault("PATCH", "/balloon", object{"amount_mib": 17}, "Balloon update error: Balloon: Requested memory should be less than 17MiB")
	v.wantFault("PATCH", "/balloon/statistics", object{"stats_polling_interval_s": 0}, "Statistics cannot be enabled/disabled after activation.")
	if _, answer := v.call("GET", "/balloon", nil); answer["amount_mib"] != 4. || answer["deflate_on_oom"] != true {
		t.Errorf("the balloon is %v", answer)
	}
	if status, answer := v.call("GET", "/balloon/statistics", nil); status != 200 || answer["target_mib"] != 4. {
		t.Errorf("its statistics are %d %v", status, answer)
	}
}

func TestMmdsIsMerged(t *testing.T) {
	v := start(t)
	v.wantDone("PUT", "/mmds", object{"a": object{"b": 1, "c": 2}, "d": 3})
	v.wantDone("PATCH", "/mmds", object{"a": object{"b": nil, "e": 4}})
	_, answer := v.call("GET", "/mmds", nil)
	inner := answer["a"].(map[string]any)
	if len(inner) != 2 || inner["c"] != 2. || inner["e"] != 4. || answer["d"] != 3. {
		t.Errorf("MMDS has %v", answer)
	}
}

func TestAnOlderReleaseHasLess(t *testing.T) {
	v := start(t, "--stand-in-fault", "old")
	if _, answer := v.call("GET", "/version", nil); answer["firecracker_version"] != "1.10.1" {
		t.Errorf("its version is %v", answer)
	}
	load := object{"snapshot_path": "s", "mem_backend": object{"backend_type": "File", "backend_path": "m"}}
	for field, value := range map[string]any{
		"vsock_override": object{"uds_path": "v"}, "clock_realtime": true, "network_overrides": []object{}, "track_dirty_pages": true,
	} {
		load[field] = value
		v.wantFault("PUT", "/snapshot/load", load, "unknown field `"+field+"`")
		delete(load, field)
	}
	v.wantFault("PUT", "/serial", object{}, "Invalid request method and/or path: PUT serial.")
	v.write("kernel", strings.Repeat("\x00", 0x202)+"HdrS and more")
	v.configure(bootArguments)
	v.wantFault("PUT", "/actions", action("InstanceStart"), "Invalid ELF magic number")
}
