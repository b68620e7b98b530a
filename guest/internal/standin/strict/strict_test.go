package strict

import "testing"

type inner struct {
	Path string `json:"path" need:"yes"`
	Kind string `json:"kind" need:"yes" one:"File,Uffd"`
}

type lenient struct {
	Name string `json:"name" need:"yes"`
}

func (lenient) TakesUnknownFields() {}

type outer struct {
	Count  uint8     `json:"count" need:"yes"`
	On     bool      `json:"on"`
	Mode   string    `json:"mode" one:"Full,Diff,None" default:"Full"`
	Inner  *inner    `json:"inner"`
	Others []lenient `json:"others"`
	New    *string   `json:"new" since:"1.16"`
}

var now = Version{1, 17}

func TestARightBodyIsRead(t *testing.T) {
	var got outer
	err := Decode([]byte(`{"count":2,"on":true,"inner":{"path":"p","kind":"Uffd"},"others":[{"name":"a","more":{"x":[1]}},{"name":"b"}],"new":null}`), &got, now)
	if err != nil {
		t.Fatal(err)
	}
	if got.Count != 2 || !got.On || got.Mode != "Full" || got.Inner.Kind != "Uffd" || len(got.Others) != 2 || got.Others[1].Name != "b" || got.New != nil {
		t.Errorf("got %+v", got)
	}
}

func TestWrongBodiesAreRefusedWithTheirPlace(t *testing.T) {
	for body, want := range map[string]string{
		`{}`:                     "missing field `count` at line 1 column 2",
		`{"count":1,"x":2}`:      "unknown field `x`, expected one of `count`, `on`, `mode`, `inner`, `others`, `new` at line 1 column 14",
		"{\n\"on\":true\n}":      "missing field `count` at line 3 column 1",
		`{"count":1,"count":1}`:  "duplicate field `count` at line 1 column 18",
		`{"count":256}`:          "invalid value: integer `256`, expected u8 at line 1 column 12",
		`{"count":-1}`:           "invalid value: integer `-1`, expected u8 at line 1 column 11",
		`{"count":1.5}`:          "invalid type: floating point `1.5`, expected u8 at line 1 column 12",
		`{"count":"1"}`:          "invalid type: string \"1\", expected u8 at line 1 column 12",
		`{"count":1,"on":1}`:     "invalid type: integer `1`, expected a boolean at line 1 column 17",
		`{"count":1,"mode":"x"}`: "unknown variant `x`, expected one of `Full`, `Diff`, `None` at line 1 column 21",
		`{"count":1,"inner":{"path":"p","kind":"x"}}`: "unknown variant `x`, expected `File` or `Uffd` at line 1 column 41",
		`{"count":1,"inner":{"pith":"p"}}`:            "unknown field `pith`, expected `path` or `kind` at line 1 column 26",
		`{"count":1,"others":[{"more":1}]}`:           "missing field `name` at line 1 column 31",
		`{"count":1} x`:                               "trailing characters at line 1 column 12",
		`nonsense`:                                    "expected value at line 1 column 0",
		`{"count":`:                                   "EOF while parsing a value at line 1 column 9",
	} {
		var got outer
		if err := Decode([]byte(body), &got, now); err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", body, err, want)
		}
	}
}

func TestAFieldOfALaterReleaseIsUnknown(t *testing.T) {
	var got outer
	err := Decode([]byte(`{"count":1,"new":"x"}`), &got, Version{1, 15})
	if want := "unknown field `new`, expected one of `count`, `on`, `mode`, `inner`, `others` at line 1 column 16"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := Decode([]byte(`{"count":1,"new":"x"}`), &got, Version{2, 0}); err != nil {
		t.Error(err)
	}
}

func TestVersionsAreRead(t *testing.T) {
	for text, want := range map[string]Version{"1.17.0": {1, 17}, "v1.10.1": {1, 10}, "2.0.0-dev": {2, 0}} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "x.y", "1.x"} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
