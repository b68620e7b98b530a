// Package strict reads JSON into structures as Firecracker's parser does: unknown, missing and repeated fields are errors with the
// position, in its words. encoding/json is too lenient for that.
//
// Tags of a field: `json` is its name; `need:"yes"` makes it one that must be there; `one:"A,B"` lists the words that a text may be;
// `default:"A"` is the text of a field that is not there; `since:"1.12"` is the release that brought the field.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// Lenient is a structure that takes fields which it does not know.
type Lenient interface{ TakesUnknownFields() }

// Version is a release, as far as fields depend on it.
type Version struct{ Major, Minor int }

// ParseVersion reads "1.17.0", "1.17" or "v1.17.0-dev".
func ParseVersion(text string) (Version, error) {
	parts := strings.SplitN(strings.TrimPrefix(text, "v"), ".", 3)
	if len(parts) < 2 {
		return Version{}, fmt.Errorf("%q is no version such as 1.17.0", text)
	}
	major, err := strconv.Atoi(parts[0])
	if err != nil {
		return Version{}, fmt.Errorf("%q is no version such as 1.17.0: %w", text, err)
	}
	minor, err := strconv.Atoi(parts[1])
	if err != nil {
		return Version{}, fmt.Errorf("%q is no version such as 1.17.0: %w", text, err)
	}
	return Version{major, minor}, nil
}

// AtLeast says whether this release is a given one or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Decode fills the structure that target points to. version decides which fields there are.
func Decode(text []byte, target any, version Version) error {
	d := &decoder{text: text, json: json.NewDecoder(bytes.NewReader(text)), version: version}
	d.json.UseNumber()
	if err := d.value(reflect.ValueOf(target).Elem(), ""); err != nil {
		return err
	}
	if _, err := d.json.Token(); !errors.Is(err, io.EOF) {
		return d.here("trailing characters")
	}
	return nil
}

type decoder struct {
	text    []byte
	json    *json.Decoder
	version Version
}

// here is an error where the reader stands.
func (d *decoder) here(format string, args ...any) error {
	before := d.text[:d.json.InputOffset()]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return fmt.Errorf("%s at line %d column %d", fmt.Sprintf(format, args...), line, column)
}

func (d *decoder) token() (json.Token, error) {
	token, err := d.json.Token()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, d.here("EOF while parsing a value")
	}
	if err != nil {
		return nil, d.here("expected value")
	}
	return token, nil
}

var rawType = reflect.TypeOf(json.RawMessage(nil))

// value reads into a variable. words are those that a text may be, separated by commas; "": any.
func (d *decoder) value(into reflect.Value, words string) error {
	if into.Type() == rawType {
		var raw json.RawMessage
		if err := d.json.Decode(&raw); err != nil {
			return d.here("expected value")
		}
		into.Set(reflect.ValueOf(raw))
		return nil
	}
	token, err := d.token()
	if err != nil {
		return err
	}
	return d.given(token, into, words)
}

func (d *decoder) given(token json.Token, into reflect.Value, words string) error {
	switch into.Kind() {
	case reflect.Pointer:
		if token == nil {
			return nil
		}
		made := reflect.New(into.Type().Elem())
		into.Set(made)
		return d.given(token, made.Elem(), words)
	case reflect.Struct:
		if token != json.Delim('{') {
			return d.mismatch(token, "struct "+into.Type().Name())
		}
		return d.fields(into)
	case reflect.Slice:
		if token != json.Delim('[') {
			return d.mismatch(token, "a sequence")
		}
		return d.items(into)
	case reflect.Map:
		if token != json.Delim('{') {
			return d.mismatch(token, "a map")
		}
		return d.entries(into)
	case reflect.String:
		text, isText := token.(string)
		if !isText {
			return d.mismatch(token, "a string")
		}
		if words != "" && !contains(strings.Split(words, ","), text) {
			return d.here("unknown variant `%s`, %s", text, expected(strings.Split(words, ",")))
		}
		into.SetString(text)
	case reflect.Bool:
		is, isBool := token.(bool)
		if !isBool {
			return d.mismatch(token, "a boolean")
		}
		into.SetBool(is)
	default:
		return d.number(token, into)
	}
	return nil
}

// number reads an unsigned one; Firecracker's API has no other.
func (d *decoder) number(token json.Token, into reflect.Value) error {
	kind := map[reflect.Kind]string{reflect.Uint8: "u8", reflect.Uint16: "u16", reflect.Uint32: "u32", reflect.Uint64: "u64"}[into.Kind()]
	number, isNumber := token.(json.Number)
	if !isNumber {
		return d.mismatch(token, kind)
	}
	value, err := strconv.ParseUint(number.String(), 10, into.Type().Bits())
	if err != nil && strings.ContainsAny(number.String(), ".eE") {
		return d.here("invalid type: floating point `%s`, expected %s", number, kind)
	}
	if err != nil {
		return d.here("invalid value: integer `%s`, expected %s", number, kind)
	}
	into.SetUint(value)
	return nil
}

func (d *decoder) mismatch(token json.Token, wanted string) error {
	got := "null"
	switch is := token.(type) {
	case string:
		got = fmt.Sprintf("string %q", is)
	case bool:
		got = fmt.Sprintf("boolean `%v`", is)
	case json.Number:
		got = fmt.Sprintf("integer `%s`", is)
	case json.Delim:
		got = map[json.Delim]string{'{': "map", '[': "sequence"}[is]
	}
	return d.here("invalid type: %s, expected %s", got, wanted)
}

func (d *decoder) fields(into reflect.Value) error {
	known := map[string]int{}
	var names []string
	for i := 0; i < into.NumField(); i++ {
		field := into.Type().Field(i)
		if since := field.Tag.Get("since"); since != "" {
			if first, err := ParseVersion(since); err != nil || !d.version.AtLeast(first.Major, first.Minor) {
				continue
			}
		}
		name := nameOf(field)
		known[name] = i
		names = append(names, name)
		if field.Type.Kind() == reflect.String {
			into.Field(i).SetString(field.Tag.Get("default"))
		}
	}
	_, isLenient := into.Interface().(Lenient)
	seen := map[string]bool{}
	for d.json.More() {
		token, err := d.token()
		if err != nil {
			return err
		}
		name, _ := token.(string) // the reader takes nothing else here
		i, isKnown := known[name]
		switch {
		case !isKnown && isLenient:
			var ignored json.RawMessage
			if err := d.json.Decode(&ignored); err != nil {
				return d.here("expected value")
			}
			continue
		case !isKnown:
			return d.here("unknown field `%s`, %s", name, expected(names))
		case seen[name]:
			return d.here("duplicate field `%s`", name)
		}
		seen[name] = true
		if err := d.value(into.Field(i), into.Type().Field(i).Tag.Get("one")); err != nil {
			return err
		}
	}
	if _, err := d.token(); err != nil {
		return err
	}
	for _, name := range names {
		if !seen[name] && into.Type().Field(known[name]).Tag.Get("need") != "" {
			return d.here("missing field `%s`", name)
		}
	}
	return nil
}

func (d *decoder) items(into reflect.Value) error {
	for d.json.More() {
		item := reflect.New(into.Type().Elem()).Elem()
		if err := d.value(item, ""); err != nil {
			return err
		}
		into.Set(reflect.Append(into, item))
	}
	_, err := d.token()
	return err
}

func (d *decoder) entries(into reflect.Value) error {
	into.Set(reflect.MakeMap(into.Type()))
	for d.json.More() {
		name, err := d.token()
		if err != nil {
			return err
		}
		item := reflect.New(into.Type().Elem()).Elem()
		if err := d.value(item, ""); err != nil {
			return err
		}
		into.SetMapIndex(reflect.ValueOf(name), item)
	}
	_, err := d.token()
	return err
}

func nameOf(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return name
}

func expected(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = "`" + name + "`"
	}
	switch len(quoted) {
	case 0:
		return "there are no fields"
	case 1:
		return "expected " + quoted[0]
	case 2:
		return "expected " + quoted[0] + " or " + quoted[1]
	}
	return "expected one of " + strings.Join(quoted, ", ")
}

func contains(words []string, word string) bool {
	for _, one := range words {
		if one == word {
			return true
		}
	}
	return false
}
