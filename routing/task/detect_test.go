package task

import "testing"

const someCV = `Anneke Verhoogen
Rotterdam | anneke@example.com | +31 6 5550 1200

EXPERIENCE
2019 - present  Planner, Havenlijn Logistics
- Planned 40 barges a week
- Wrote the weekly report and the call script for carriers
2015 - 2019  Dispatcher, Maasveer

EDUCATION
BSc Logistics, 2015

SKILLS
SQL, SAP, Dutch, English`

func user(text string) Input { return Input{Messages: []Message{{Role: "user", Text: text}}} }

func TestPlainAsks(t *testing.T) {
	for _, c := range []struct{ ask, want string }{
		{"Parse this CV into JSON with name, employers and skills.", ResumeParsing},
		{"Is she a fit for our senior planner role? Score 0-100 and list the gaps.", MatchingLogic},
		{"Draft a short InMail to her.", ScriptGeneration},
		{"Summarise this candidate for the hiring manager in two paragraphs.", ReportGeneration},
		{"How do I match strings with a regex in Go?", General},
	} {
		for _, text := range []string{c.ask + "\n\n" + someCV, someCV + "\n\n" + c.ask} {
			if got := Detect(user(text)); got.Task != c.want {
				t.Errorf("%q with a CV = %s (%.2f), want %s", c.ask, got.Task, got.Confidence, c.want)
			}
		}
	}
}

func TestBareDocument(t *testing.T) {
	if got := Detect(user(someCV)); got.Task != General {
		t.Errorf("a CV alone = %s (%.2f), want general", got.Task, got.Confidence)
	}
	in := Input{Messages: []Message{{Role: "system", Text: "You are a resume parser. Return JSON."}, {Role: "user", Text: someCV}}}
	if got := Detect(in); got.Task != ResumeParsing {
		t.Errorf("a CV under a parser's prompt = %s (%.2f), want %s", got.Task, got.Confidence, ResumeParsing)
	}
}
