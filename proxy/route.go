package proxy

import (
	"encoding/json"
	"net/http"

	"tenure/proxy/wire"
	"tenure/routing"
	"tenure/routing/task"
)

// Explanation is what POST /v1/route answers: where a request would go, and
// why. It holds rule names and places, never a word of the request.
type Explanation struct {
	Task       string             `json:"task"`
	Confidence float64            `json:"confidence"`
	Scores     map[string]float64 `json:"scores"` // probability of each task; empty when forced
	Cause      string             `json:"cause"`
	Evidence   []task.Evidence    `json:"evidence"`
	Documents  []task.Document    `json:"documents"`
	Flags      []string           `json:"flags"`
	Model      string             `json:"model"`
	Fallbacks  []string           `json:"fallbacks"`
	Parameters struct {
		MaxTokens   int      `json:"max_tokens"`
		Temperature *float64 `json:"temperature"` // null: the model's own
		NumCtx      int      `json:"num_ctx"`
		CacheTTL    string   `json:"cache_ttl"` // as 24h0m0s; 0s: not kept
	} `json:"parameters"`
}

// Explain tells a decision.
func Explain(d routing.Decision) Explanation {
	e := Explanation{
		Task: d.Task, Confidence: d.Confidence, Cause: d.Cause, Model: d.Candidates[0].Name,
		Scores: map[string]float64{}, Evidence: []task.Evidence{}, Documents: []task.Document{}, Flags: []string{}, Fallbacks: []string{},
	}
	for _, c := range d.Candidates[1:] {
		e.Fallbacks = append(e.Fallbacks, c.Name)
	}
	if found := d.Detection; found != nil {
		e.Scores = found.Scores
		e.Evidence = append(e.Evidence, found.Evidence...)
		e.Documents = append(e.Documents, found.Documents...)
		e.Flags = append(e.Flags, found.Flags...)
	}
	e.Parameters.MaxTokens = d.Parameters.MaxTokens
	e.Parameters.Temperature = d.Parameters.Temperature
	e.Parameters.NumCtx = d.Candidates[0].Context
	e.Parameters.CacheTTL = d.Parameters.CacheTTL.String()
	return e
}

// Question reads the body of a chat request as the router would.
func Question(body []byte, lim wire.Limits) (routing.Request, error) {
	chat, err := wire.DecodeChat(body, lim)
	if err != nil {
		return routing.Request{}, err
	}
	return conversation{chat}.question(), nil
}

// route answers where a chat request would go. No model is called.
func (s *Server) route(x *exchange) error {
	body, err := x.body(s.cfg.BodyBytes)
	if err != nil {
		return err
	}
	q, err := Question(body, s.cfg.Limits)
	if err != nil {
		return err
	}
	if err := s.permit(x, q.Model); err != nil {
		return err
	}
	d, err := s.router.Route(q)
	if err != nil {
		return err
	}
	answer, err := json.Marshal(Explain(d))
	if err != nil {
		return err
	}
	x.gin.Data(http.StatusOK, "application/json", append(answer, '\n'))
	return nil
}
