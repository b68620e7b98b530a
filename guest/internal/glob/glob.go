// Package glob says which files of a folder a copy takes: docs/files.md, "Patterns". The host does the same in TypeScript, and
// protocol/vectors-glob holds what both must say.
package glob

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxPatternBytes bounds one pattern.
const MaxPatternBytes = 4096

// Pattern is one that was understood.
type Pattern struct {
	segments   []segment
	folderOnly bool
}

// segment is a part of a pattern between slashes. any is `**`.
type segment struct {
	any    bool
	tokens []token
}

type token struct {
	kind    tokenKind
	literal rune
	negated bool
	ranges  [][2]rune
}

type tokenKind int

const (
	literal tokenKind = iota
	one               // ?
	many              // *
	class             // […]
)

// Parse understands a pattern, or says what is wrong with it.
func Parse(text string) (*Pattern, error) {
	switch {
	case text == "":
		return nil, errors.New("it is empty")
	case len(text) > MaxPatternBytes:
		return nil, fmt.Errorf("it is longer than %d bytes", MaxPatternBytes)
	case !utf8.ValidString(text) || strings.Contains(text, "\x00"):
		return nil, errors.New("it is not UTF-8 without NUL")
	case strings.HasPrefix(text, "!"):
		return nil, errors.New("it begins with !, which is not known here: write \\! for a name that does")
	}
	p := &Pattern{}
	anchored := false
	if strings.HasPrefix(text, "/") {
		anchored = true
		text = text[1:]
	}
	if strings.HasSuffix(text, "/") {
		p.folderOnly = true
		text = text[:len(text)-1]
	}
	parts, err := split(text)
	if err != nil {
		return nil, err
	}
	if len(parts) == 1 && !anchored {
		p.segments = append(p.segments, segment{any: true})
	}
	for _, part := range parts {
		if part == "**" {
			p.segments = append(p.segments, segment{any: true})
			continue
		}
		tokens, err := tokens(part)
		if err != nil {
			return nil, err
		}
		p.segments = append(p.segments, segment{tokens: tokens})
	}
	if len(parts) > 0 && parts[len(parts)-1] == "**" {
		// At the end it means what is inside, at least one name: a/** is not a itself.
		p.segments = append(p.segments, segment{tokens: []token{{kind: many}}})
	}
	return p, nil
}

// split cuts at slashes. A slash cannot be escaped or stand in a class, as no name has one.
func split(text string) ([]string, error) {
	parts := strings.Split(text, "/")
	for _, part := range parts {
		if part == "" || part == "." || part == ".." {
			return nil, errors.New("a part of it between slashes is empty, . or ..")
		}
	}
	return parts, nil
}

func tokens(part string) ([]token, error) {
	var list []token
	runes := []rune(part)
	for i := 0; i < len(runes); i++ {
		switch runes[i] {
		case '\\':
			i++
			if i == len(runes) {
				return nil, errors.New("a \\ stands at the end of a name")
			}
			list = append(list, token{kind: literal, literal: runes[i]})
		case '?':
			list = append(list, token{kind: one})
		case '*':
			if len(list) == 0 || list[len(list)-1].kind != many {
				list = append(list, token{kind: many})
			}
		case '[':
			t, next, err := parseClass(runes, i+1)
			if err != nil {
				return nil, err
			}
			list = append(list, t)
			i = next
		default:
			list = append(list, token{kind: literal, literal: runes[i]})
		}
	}
	return list, nil
}

// parseClass reads what follows a [, and gives the place of its ].
func parseClass(runes []rune, i int) (token, int, error) {
	t := token{kind: class}
	if i < len(runes) && (runes[i] == '!' || runes[i] == '^') {
		t.negated = true
		i++
	}
	take := func() (rune, bool) {
		if i < len(runes) && runes[i] == '\\' {
			i++
		}
		if i >= len(runes) {
			return 0, false
		}
		i++
		return runes[i-1], true
	}
	for first := true; ; first = false {
		if i < len(runes) && runes[i] == ']' {
			if first {
				return t, 0, errors.New("a [ ] is empty: write \\] for the character")
			}
			return t, i, nil
		}
		low, there := take()
		high := low
		if there && i+1 < len(runes) && runes[i] == '-' && runes[i+1] != ']' {
			i++
			high, there = take()
		}
		if !there {
			return t, 0, errors.New("a [ has no ]: write \\[ for the character")
		}
		if low > high {
			return t, 0, errors.New("a range in [ ] goes backwards")
		}
		t.ranges = append(t.ranges, [2]rune{low, high})
	}
}

// Matches says whether the pattern names this very path, whose names are separated by slashes.
func (p *Pattern) Matches(path string, isFolder bool) bool {
	if p.folderOnly && !isFolder {
		return false
	}
	return matchSegments(p.segments, strings.Split(path, "/"))
}

// matchSegments goes back to the last ** only, as matchName does with *.
func matchSegments(segments []segment, names []string) bool {
	s, n, star, mark := 0, 0, -1, 0
	for n < len(names) {
		switch {
		case s < len(segments) && segments[s].any:
			star, mark = s, n
			s++
		case s < len(segments) && matchName(segments[s].tokens, characters(names[n])):
			s++
			n++
		case star >= 0:
			mark++
			s, n = star+1, mark
		default:
			return false
		}
	}
	for s < len(segments) && segments[s].any {
		s++
	}
	return s == len(segments)
}

// characters are those of UTF-8; a byte that is not UTF-8 is one of its own, which no pattern can write.
func characters(name string) []rune { return []rune(name) }

// matchName goes back to the last * only, which is enough, and takes no more than the product of the lengths.
func matchName(pattern []token, name []rune) bool {
	p, n, star, mark := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p].kind == many:
			star, mark = p, n
			p++
		case p < len(pattern) && pattern[p].takes(name[n]):
			p++
			n++
		case star >= 0:
			mark++
			p, n = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p].kind == many {
		p++
	}
	return p == len(pattern)
}

func (t token) takes(r rune) bool {
	switch t.kind {
	case literal:
		return r == t.literal
	case one:
		return true
	case class:
		for _, each := range t.ranges {
			if r >= each[0] && r <= each[1] {
				return !t.negated
			}
		}
		return t.negated
	}
	return false
}

// Selection is what a copy takes: include chooses, exclude takes away.
type Selection struct{ include, exclude []*Pattern }

// NewSelection understands all patterns. Without an include everything is chosen.
func NewSelection(include, exclude []string) (*Selection, error) {
	s := &Selection{}
	for _, list := range []struct {
		name  string
		texts []string
		to    *[]*Pattern
	}{{"include", include, &s.include}, {"exclude", exclude, &s.exclude}} {
		for _, text := range list.texts {
			pattern, err := Parse(text)
			if err != nil {
				return nil, fmt.Errorf("cannot %s %q: %w", list.name, text, err)
			}
			*list.to = append(*list.to, pattern)
		}
	}
	return s, nil
}

// Verdict is what becomes of a file.
type Verdict int

const (
	// Out: neither it nor anything below it.
	Out Verdict = iota
	// Maybe is a folder that is only taken for what is below it.
	Maybe
	// In: it is taken, and so is all below it that is not excluded.
	In
)

// Of judges a path below the copied folder. above is the verdict on the folder that it is in.
func (s *Selection) Of(path string, isFolder bool, above Verdict) Verdict {
	for _, pattern := range s.exclude {
		if pattern.Matches(path, isFolder) {
			return Out
		}
	}
	if above == In {
		return In
	}
	for _, pattern := range s.include {
		if pattern.Matches(path, isFolder) {
			return In
		}
	}
	if isFolder {
		return Maybe
	}
	return Out
}

// Top is the verdict on the copied folder itself, which is always taken.
func (s *Selection) Top() Verdict {
	if len(s.include) == 0 {
		return In
	}
	return Maybe
}
