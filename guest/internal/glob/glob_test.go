package glob

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

type cases struct {
	Patterns []struct {
		Pattern, Path   string
		Folder, Matches bool
	}
	Invalid    []string
	Selections []struct{ Include, Exclude, Tree, Taken []string }
}

func read(t *testing.T) cases {
	t.Helper()
	text, err := os.ReadFile("../../../protocol/vectors-glob/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var all cases
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Patterns) < 50 || len(all.Invalid) < 10 || len(all.Selections) < 5 {
		t.Fatal("there are too few cases: are they read?")
	}
	return all
}

func TestPatternsNameWhatTheVectorsSay(t *testing.T) {
	for _, each := range read(t).Patterns {
		pattern, err := Parse(each.Pattern)
		if err != nil {
			t.Errorf("%q: %v", each.Pattern, err)
		} else if got := pattern.Matches(each.Path, each.Folder); got != each.Matches {
			t.Errorf("%q on %q (folder: %v): %v", each.Pattern, each.Path, each.Folder, got)
		}
	}
}

func TestWhatIsNoPatternIsRefused(t *testing.T) {
	for _, text := range append(read(t).Invalid, "\xff", "a\x00", strings.Repeat("a", 5000)) {
		if _, err := Parse(text); err == nil {
			t.Errorf("%q is taken for a pattern", text)
		}
	}
}

func TestSelectionsTakeWhatTheVectorsSay(t *testing.T) {
	for _, each := range read(t).Selections {
		selection, err := NewSelection(each.Include, each.Exclude)
		if err != nil {
			t.Fatal(err)
		}
		verdicts := map[string]Verdict{"": selection.Top()}
		taken := map[string]bool{}
		for _, path := range each.Tree {
			name := strings.TrimSuffix(path, "/")
			above := ""
			if slash := strings.LastIndex(name, "/"); slash >= 0 {
				above = name[:slash]
			}
			verdict := Out
			if verdicts[above] != Out {
				verdict = selection.Of(name, path != name, verdicts[above])
			}
			verdicts[name] = verdict
			for at := path; verdict == In && at != ""; {
				taken[at] = true
				at = at[:strings.LastIndex(strings.TrimSuffix(at, "/"), "/")+1]
			}
		}
		got := []string{}
		for _, path := range each.Tree {
			if taken[path] {
				got = append(got, path)
			}
		}
		if !reflect.DeepEqual(got, append([]string{}, each.Taken...)) {
			t.Errorf("include %q, exclude %q: %q, %q was meant", each.Include, each.Exclude, got, each.Taken)
		}
	}
}
