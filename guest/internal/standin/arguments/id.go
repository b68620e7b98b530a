package arguments

import (
	"fmt"
	"unicode"
)

// maxIDBytes is Firecracker's limit for the id of a microVM.
const maxIDBytes = 64

// CheckID says what is wrong with the id of a microVM, in Firecracker's words.
func CheckID(id string) error {
	if len(id) == 0 || len(id) > maxIDBytes {
		return fmt.Errorf("Invalid len (%d);  the length must be between 1 and %d", len(id), maxIDBytes)
	}
	position := 0
	for _, c := range id {
		if c != '-' && !unicode.IsLetter(c) && !unicode.IsNumber(c) {
			return fmt.Errorf("Invalid char (%c) at position %d", c, position)
		}
		position++
	}
	return nil
}
