// Package arguments reads a command line by the rules that Firecracker and its jailer share: long names only, values as separate
// words that do not begin with two dashes, and whatever follows `--` left alone.
package arguments

import (
	"fmt"
	"sort"
	"strings"
)

const prefix = "--"

// Argument is one that a program knows.
type Argument struct {
	Name       string
	TakesValue bool
	IsRequired bool
	// IsRepeatable may be given several times; it takes a value each time.
	IsRepeatable bool
	// Requires and Forbids name another argument.
	Requires, Forbids string
	Default           string
}

// Arguments are those that were given.
type Arguments struct {
	known  map[string]Argument
	values map[string][]string
	// Rest is what followed `--`.
	Rest []string
}

// Parse reads the words after the program's name. The error's text is Firecracker's.
func Parse(words []string, known []Argument) (*Arguments, error) {
	a := &Arguments{known: map[string]Argument{}, values: map[string][]string{}}
	for _, argument := range known {
		a.known[argument.Name] = argument
	}
	for i, word := range words {
		if word == prefix {
			words, a.Rest = words[:i], words[i+1:]
			break
		}
	}
	for _, word := range words {
		// Either wins over whatever else is there, right or wrong.
		if word == "--help" || word == "-h" {
			a.values["help"] = []string{""}
			return a, nil
		}
	}
	for _, word := range words {
		if word == "--version" {
			a.values["version"] = []string{""}
			return a, nil
		}
	}
	if err := a.read(words); err != nil {
		return nil, err
	}
	return a, a.check()
}

func (a *Arguments) read(words []string) error {
	for i := 0; i < len(words); i++ {
		name := strings.TrimPrefix(words[i], prefix)
		argument, isKnown := a.known[name]
		if name == words[i] || !isKnown {
			return fmt.Errorf("Found argument '%s' which wasn't expected, or isn't valid in this context.", name)
		}
		if a.Has(name) && !argument.IsRepeatable {
			return fmt.Errorf("The argument '%s' was provided more than once.", name)
		}
		value := ""
		if argument.TakesValue || argument.IsRepeatable {
			if i++; i == len(words) || strings.HasPrefix(words[i], prefix) {
				return fmt.Errorf("The argument '%s' requires a value, but none was supplied.", name)
			}
			value = words[i]
		}
		a.values[name] = append(a.values[name], value)
	}
	return nil
}

// check goes through the known ones in the order of their names, as Firecracker does: the first that is wrong is told.
func (a *Arguments) check() error {
	names := make([]string, 0, len(a.known))
	for name := range a.known {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		argument := a.known[name]
		if argument.IsRequired && !a.Has(name) {
			return fmt.Errorf("Argument '%s' required, but not found.", name)
		}
		if !a.Has(name) {
			continue
		}
		if argument.Requires != "" && !a.Has(argument.Requires) {
			return fmt.Errorf("Argument '%s' required, but not found.", argument.Requires)
		}
		if argument.Forbids != "" && a.Has(argument.Forbids) {
			return fmt.Errorf("Argument '%s' cannot be used together with argument '%s'.", argument.Forbids, name)
		}
	}
	return nil
}

// Has says whether an argument was given; a default does not count.
func (a *Arguments) Has(name string) bool { return len(a.values[name]) > 0 }

// Value is what was given, or the default.
func (a *Arguments) Value(name string) string {
	if values := a.values[name]; len(values) > 0 {
		return values[0]
	}
	return a.known[name].Default
}

// Values are all that were given.
func (a *Arguments) Values(name string) []string { return a.values[name] }
