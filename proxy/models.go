package proxy

import (
	"net/http"
	"strings"
	"time"

	"tenure/routing"
)

// modelObject is one entry of GET /v1/models.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// listModels lists the virtual models and what Ollama was last seen to have, of
// those that the key may use; it answers while Ollama does not.
func (s *Server) listModels(x *exchange) error {
	list := struct {
		Object string        `json:"object"`
		Data   []modelObject `json:"data"`
	}{Object: "list", Data: []modelObject{}}
	changed := s.backend.modifiedAt()
	for _, name := range s.router.Names() {
		if !s.mayUse(x.holder, name) {
			continue
		}
		list.Data = append(list.Data, s.model(name, changed))
	}
	x.gin.JSON(http.StatusOK, list)
	return nil
}

// getModel answers for one model, whether its slash came plain or escaped.
func (s *Server) getModel(x *exchange) error {
	id := strings.TrimPrefix(x.gin.Param("id"), "/")
	if err := s.permit(x, id); err != nil {
		return err
	}
	if _, err := s.router.Route(routing.Request{Model: id}); err != nil {
		return err
	}
	x.gin.JSON(http.StatusOK, s.model(id, s.backend.modifiedAt()))
	return nil
}

func (s *Server) model(id string, changed map[string]time.Time) modelObject {
	if at, ok := changed[ShortName(id)]; ok {
		return modelObject{ID: id, Object: "model", Created: at.Unix(), OwnedBy: "ollama"}
	}
	return modelObject{ID: id, Object: "model", Created: s.started.Unix(), OwnedBy: "tenure"}
}
