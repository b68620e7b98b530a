package datalink

import "sort"

// span is a range of the stream: start inclusive, end exclusive.
type span struct{ start, end uint64 }

// spans are ranges in order; none touches another.
type spans []span

// add unites the set with a range.
func (s *spans) add(r span) {
	all := *s
	// The ranges from first to before last touch r and become one with it.
	first := sort.Search(len(all), func(i int) bool { return all[i].end >= r.start })
	last := first
	for last < len(all) && all[last].start <= r.end {
		if all[last].start < r.start {
			r.start = all[last].start
		}
		if all[last].end > r.end {
			r.end = all[last].end
		}
		last++
	}
	if first == last {
		all = append(all, span{})
		copy(all[first+1:], all[first:])
	} else {
		all = append(all[:first+1], all[last:]...)
	}
	all[first] = r
	*s = all
}

// take gives the lowest range, of at most so many bytes, and removes it.
func (s *spans) take(most int) span {
	r := (*s)[0]
	if r.end-r.start > uint64(most) {
		r.end = r.start + uint64(most)
		(*s)[0].start = r.end
		return r
	}
	*s = (*s)[:copy(*s, (*s)[1:])]
	return r
}

// below removes everything under the offset.
func (s *spans) below(offset uint64) {
	n := 0
	for n < len(*s) && (*s)[n].end <= offset {
		n++
	}
	*s = (*s)[:copy(*s, (*s)[n:])]
	if len(*s) > 0 && (*s)[0].start < offset {
		(*s)[0].start = offset
	}
}
