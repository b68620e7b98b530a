package boot

import (
	"reflect"
	"testing"
)

func TestTheCommandLineIsReadByName(t *testing.T) {
	config, err := ParseConfig("console=ttyS0 quiet bandsox.port=9123 bandsox.serial=ttyS0 bandsox.hostname=sbx-1 bandsox.root=/dev/vdc" +
		" bandsox.overlay=/dev/vdd bandsox.dns=10.0.2.3,fe80::1 bandsox.poweroff=reboot bandsox.test=1 bandsox.later=x panic=-1\n")
	want := Config{Port: 9123, Serial: "ttyS0", Hostname: "sbx-1", Root: "/dev/vdc", Overlay: "/dev/vdd", PowerOff: "reboot", DNS: []string{"10.0.2.3", "fe80::1"}}
	if err != nil || !reflect.DeepEqual(config, want) {
		t.Fatalf("%+v, %v", config, err)
	}
}

func TestDefaultsOfTheCommandLine(t *testing.T) {
	config, err := ParseConfig("quiet bandsox.dns=")
	if err != nil || !reflect.DeepEqual(config, Config{Port: 9000, Hostname: "bandsox", Root: "/dev/vda"}) {
		t.Fatalf("%+v, %v", config, err)
	}
}

func TestAPortThatIsNoneIsRefused(t *testing.T) {
	for _, port := range []string{"0", "x", "-1", "4294967296"} {
		if _, err := ParseConfig("bandsox.port=" + port); err == nil {
			t.Errorf("port %s was taken", port)
		}
	}
}

func TestASerialLineThatIsAPathIsRefused(t *testing.T) {
	if _, err := ParseConfig("bandsox.serial=../sda"); err == nil {
		t.Error("it was taken")
	}
}

func TestAPowerOffOfAnotherKindIsRefused(t *testing.T) {
	if _, err := ParseConfig("bandsox.poweroff=halt"); err == nil {
		t.Error("it was taken")
	}
}
