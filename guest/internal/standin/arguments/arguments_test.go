package arguments

import (
	"strings"
	"testing"
)

var few = []Argument{
	{Name: "id", TakesValue: true, Default: "nobody"},
	{Name: "no-api", Requires: "config-file"},
	{Name: "config-file", TakesValue: true},
	{Name: "no-seccomp", Forbids: "seccomp-filter"},
	{Name: "seccomp-filter", TakesValue: true, Forbids: "no-seccomp"},
	{Name: "cgroup", IsRepeatable: true},
	{Name: "version"},
}

func TestArgumentsAreReadByFirecrackersRules(t *testing.T) {
	given, err := Parse([]string{"--cgroup", "a=1", "--no-api", "--config-file", "c", "--cgroup", "b=2", "--", "--id", "x"}, few)
	if err != nil {
		t.Fatal(err)
	}
	if given.Value("id") != "nobody" || given.Has("id") || !given.Has("no-api") || given.Value("config-file") != "c" {
		t.Errorf("got %+v", given.values)
	}
	if strings.Join(given.Values("cgroup"), " ") != "a=1 b=2" || strings.Join(given.Rest, " ") != "--id x" {
		t.Errorf("got %v and %v", given.Values("cgroup"), given.Rest)
	}
}

func TestWrongArgumentsAreRefusedInFirecrackersWords(t *testing.T) {
	for line, want := range map[string]string{
		"--nope":                                 "Found argument 'nope' which wasn't expected, or isn't valid in this context.",
		"nope":                                   "Found argument 'nope' which wasn't expected, or isn't valid in this context.",
		"--id=x":                                 "Found argument 'id=x' which wasn't expected, or isn't valid in this context.",
		"--id":                                   "The argument 'id' requires a value, but none was supplied.",
		"--id --no-api":                          "The argument 'id' requires a value, but none was supplied.",
		"--id a --id b":                          "The argument 'id' was provided more than once.",
		"--no-api":                               "Argument 'config-file' required, but not found.",
		"--no-seccomp --seccomp-filter f":        "Argument 'seccomp-filter' cannot be used together with argument 'no-seccomp'.",
		"--version --nope":                       "",
		"--nope -h":                              "",
		"--id x --cgroup a=1 -- whatever --nope": "",
	} {
		_, err := Parse(strings.Fields(line), few)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	if _, err := Parse(nil, []Argument{{Name: "uid", TakesValue: true, IsRequired: true}}); err == nil {
		t.Error("a required argument may be left out")
	}
}

func TestIDsAreChecked(t *testing.T) {
	for id, isRight := range map[string]bool{
		"a": true, "sbx-1": true, strings.Repeat("a", 64): true, "": false, "a_b": false, "a/b": false, "..": false, strings.Repeat("a", 65): false,
	} {
		if err := CheckID(id); (err == nil) != isRight {
			t.Errorf("%q: %v", id, err)
		}
	}
}
