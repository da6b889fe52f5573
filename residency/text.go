package residency

import "fmt"

// UnmarshalText is the inverse of MarshalText, for who reads a State.
func (c *Class) UnmarshalText(text []byte) error {
	return unmarshal(c, text, Interactive, Batch)
}

// UnmarshalText is the inverse of MarshalText, for who reads a State.
func (p *Phase) UnmarshalText(text []byte) error {
	return unmarshal(p, text, Absent, Loading, Ready, Closing, Unloading)
}

// UnmarshalText is the inverse of MarshalText, for who reads a Decision.
func (r *Reason) UnmarshalText(text []byte) error {
	return unmarshal(r, text, NoReason, Room, Idle, Rent, Overdue, Prefetch, Preloaded, Returned, Operator, Overcommit)
}

func unmarshal[T fmt.Stringer](into *T, text []byte, values ...T) error {
	for _, v := range values {
		if v.String() == string(text) {
			*into = v
			return nil
		}
	}
	return fmt.Errorf("%q: want one of %v", text, values)
}
