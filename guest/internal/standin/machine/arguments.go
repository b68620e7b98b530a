package machine

import "strings"

// serialName is the one UART that Firecracker has.
const serialName = "ttyS0"

// arguments are those of a kernel's command line that the agent does not read.
type arguments struct {
	isQuiet bool
	// hasConsole is whether what is printed on the console comes out of the UART.
	hasConsole bool
	hasUART    bool
	// hasKeyboard is whether ctrl-alt-del is heard.
	hasKeyboard bool
}

func parseArguments(commandLine string) arguments {
	found := arguments{hasUART: true, hasKeyboard: true}
	consoles, onUART := 0, 0
	for _, word := range strings.Fields(commandLine) {
		switch {
		case word == "quiet":
			found.isQuiet = true
		case word == "i8042.nokbd":
			found.hasKeyboard = false
		case word == "8250.nr_uarts=0":
			found.hasUART = false
		case strings.HasPrefix(word, "console="):
			consoles++
			if name, _, _ := strings.Cut(strings.TrimPrefix(word, "console="), ","); name == serialName {
				onUART++
			}
		}
	}
	found.hasConsole = found.hasUART && (consoles == 0 || onUART > 0)
	return found
}
