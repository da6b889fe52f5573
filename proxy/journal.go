package proxy

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"tenure/proxy/wire"
	"tenure/residency"

	"github.com/gin-gonic/gin"
)

// journalSize is how many decisions are kept: some hours of a busy GPU. Older
// ones are in the log only.
const journalSize = 2048

// Entry is one line of the journal. IDs count from 1 and have no gaps.
type Entry struct {
	ID uint64 `json:"id"`
	// What names the finding, where tenure put right what Ollama did.
	What string `json:"what,omitempty"`
	residency.Decision
}

// Journal keeps the last decisions and why they were made: models, counts,
// scores and times, nothing of any request. It is safe for concurrent use, and
// whoever follows it slowly holds nobody up.
type Journal struct {
	mu      sync.Mutex
	ring    [journalSize]Entry
	last    uint64
	changed chan struct{} // closed at the next entry, then replaced
	ended   bool
	loads   map[string]loadStat
}

// loadStat is what the journal's loads have shown of one model.
type loadStat struct {
	count int
	mean  time.Duration // the newest counts half: only a first load reads the disk
}

// NewJournal returns an empty journal.
func NewJournal() *Journal {
	return &Journal{changed: make(chan struct{}), loads: map[string]loadStat{}}
}

// Record adds a decision; it fits residency.Config.OnDecision.
func (j *Journal) Record(d residency.Decision) { j.add("", d) }

func (j *Journal) add(what string, d residency.Decision) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if d.Action == residency.ActLoaded {
		l := j.loads[d.Model]
		if l.count == 0 {
			l.mean = d.Took
		}
		j.loads[d.Model] = loadStat{l.count + 1, (l.mean + d.Took) / 2}
	}
	j.last++
	j.ring[j.last%journalSize] = Entry{ID: j.last, What: what, Decision: d}
	if !j.ended {
		close(j.changed)
		j.changed = make(chan struct{})
	}
}

// end lets everybody go who follows the journal.
func (j *Journal) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.ended {
		j.ended = true
		close(j.changed)
	}
}

// wait returns a channel that is closed at the next entry, and whether none
// will come any more.
func (j *Journal) wait() (next <-chan struct{}, ended bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed, j.ended
}

// loadTime is the mean of a model's loads, and how many were seen.
func (j *Journal) loadTime(model string) (mean time.Duration, loads int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l := j.loads[model]
	return l.mean, l.count
}

// DecisionQuery chooses entries.
type DecisionQuery struct {
	After uint64    // entries with a higher ID
	From  time.Time // not earlier
	Model string    // the model that moved or that it was for; empty: any
	Limit int       // the newest so many; 0: all
}

func (q *DecisionQuery) fits(e *Entry) bool {
	return !e.At.Before(q.From) && (q.Model == "" || e.Model == q.Model || e.For == q.Model)
}

// Decisions is what GET /admin/decisions answers. An asker whose last ID is
// before Oldest has missed some.
type Decisions struct {
	Oldest    uint64  `json:"oldest"` // ID of the oldest entry that is kept; 0: none yet
	Last      uint64  `json:"last"`
	Decisions []Entry `json:"decisions"` // in order
}

// Find returns the entries that fit. An After beyond the last entry is from
// before a restart and counts as 0.
func (j *Journal) Find(q DecisionQuery) Decisions {
	j.mu.Lock()
	defer j.mu.Unlock()
	found := Decisions{Last: j.last, Decisions: []Entry{}}
	if j.last == 0 {
		return found
	}
	found.Oldest = 1
	if j.last > journalSize {
		found.Oldest = j.last - journalSize + 1
	}
	if q.After > j.last {
		q.After = 0
	}
	for id := max(found.Oldest, q.After+1); id <= j.last; id++ {
		if e := &j.ring[id%journalSize]; q.fits(e) {
			found.Decisions = append(found.Decisions, *e)
		}
	}
	if q.Limit > 0 && len(found.Decisions) > q.Limit {
		found.Decisions = found.Decisions[len(found.Decisions)-q.Limit:]
	}
	return found
}

// decisionQuery reads ?since= (an ID or an RFC 3339 time), ?model= and ?limit=.
func decisionQuery(c *gin.Context) (DecisionQuery, *Error) {
	q := DecisionQuery{Limit: 100}
	if model := c.Query("model"); model != "" {
		q.Model = ShortName(model)
	}
	if since := c.Query("since"); since != "" {
		var err error
		if q.After, err = strconv.ParseUint(since, 10, 64); err != nil {
			if q.From, err = time.Parse(time.RFC3339, since); err != nil {
				return q, badQuery(err, "since", "an id or a time such as 2026-01-02T15:04:05Z")
			}
		}
	}
	if limit := c.Query("limit"); limit != "" {
		var err error
		if q.Limit, err = strconv.Atoi(limit); err != nil || q.Limit < 1 || q.Limit > journalSize {
			return q, badQuery(err, "limit", "a number from 1 to "+strconv.Itoa(journalSize))
		}
	}
	return q, nil
}

func badQuery(err error, param, allowed string) *Error {
	e := problem(err, outcomeCaller, http.StatusBadRequest, "invalid_value", 0, "Invalid value for '"+param+"': "+allowed+" is allowed.")
	e.Refusal.Param = param
	return e
}

func (s *Server) getDecisions(c *gin.Context) {
	q, err := decisionQuery(c)
	if err != nil {
		refuse(c, err)
		return
	}
	c.JSON(http.StatusOK, s.journal.Find(q))
}

// streamDecisions sends entries as they come, as server-sent events. A client
// that returns with Last-Event-ID goes on where it was; without it the stream
// begins with the last entries that ?limit= asks for, 0 by default.
func (s *Server) streamDecisions(c *gin.Context) {
	q, bad := decisionQuery(c)
	if bad != nil {
		refuse(c, bad)
		return
	}
	if c.Query("limit") == "" && c.Query("since") == "" {
		q.After = s.journal.Find(DecisionQuery{Limit: 1}).Last
	}
	if id, err := strconv.ParseUint(c.GetHeader("Last-Event-ID"), 10, 64); err == nil {
		q.After = id
	}
	x := &exchange{gin: c, ctx: c.Request.Context()}
	x.openStream(wire.EventStream)
	buf := []byte(": decisions\n\n")
	for {
		next, ended := s.journal.wait()
		found := s.journal.Find(q)
		if found.Oldest > q.After+1 && q.After > 0 {
			buf = append(buf, ": some decisions are no longer kept\n\n"...)
		}
		q.After, q.Limit = found.Last, 0
		for i := range found.Decisions {
			buf = appendEvent(buf, &found.Decisions[i])
		}
		if len(buf) > 0 {
			if x.send(buf, s.cfg.StallTimeout) != nil {
				return
			}
			buf = buf[:0]
		}
		if ended {
			return
		}
		select {
		case <-next:
		case <-time.After(keepAliveEvery):
			buf = append(buf, ": keep-alive\n\n"...)
		case <-x.ctx.Done():
			return
		}
	}
}

func appendEvent(buf []byte, e *Entry) []byte {
	data, err := json.Marshal(e)
	if err != nil {
		return buf // times beyond the year 9999 cannot come from a clock
	}
	buf = append(buf, "id: "...)
	buf = strconv.AppendUint(buf, e.ID, 10)
	buf = append(buf, "\nevent: decision\ndata: "...)
	return append(append(buf, data...), "\n\n"...)
}
