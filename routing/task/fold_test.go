package task

import "testing"

func TestFold(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Parse this CV, please.\nJSON only!", "parse this cv\tplease\njson only"},
		{"Résumé für Müller & Söhne", "resume fur muller sohne"},
		{"don't rate 1-5", "dont rate 0 0"},
		{"Is he a fit?", "is he a fit ?"},
		{"zero\u200bwidth so\u00adft", "zerowidth soft"},
		{"missing_skills", "missing skills"},
		{"总结一下。", "总 结 一 下"},
		{"Straße", "strasse"},
	} {
		got, at := fold(nil, nil, c.in, 0)
		if string(got) != c.want {
			t.Errorf("fold(%q) = %q, want %q", c.in, got, c.want)
		}
		if len(at) != len(got) {
			t.Errorf("fold(%q): %d offsets for %d bytes", c.in, len(at), len(got))
		}
	}
}

func TestLexicon(t *testing.T) {
	l, err := parseLexicon("a general=1\n\tcover letter, extract*\nb\n\tletter, 提取\n", []string{General})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := fold(nil, nil, "extracting a cover letter 请提取", 0)
	var got []string
	for i := range text {
		if i == 0 || text[i-1] == ' ' {
			l.find(text, i, func(c uint8, end int) { got = append(got, l.concepts[c].name+":"+string(text[i:end])) })
		}
	}
	want := []string{"a:extract", "a:cover letter", "b:letter", "b:提 取"}
	if len(got) != len(want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("hit %d = %q, want %q", i, got[i], want[i])
		}
	}
}
