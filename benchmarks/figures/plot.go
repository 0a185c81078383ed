package figures

import (
	"fmt"
	"math"
	"os"
	"strings"
)

// Series is one line of a plot: points (X[i], Y[i]) with whiskers from Low[i]
// to High[i].
type Series struct {
	Name            string
	X, Y, Low, High []float64
}

// Plot is a line plot with logarithmic axes, as suits numbers of clones.
type Plot struct {
	Title, XLabel, YLabel string
	Series                []Series
}

const (
	plotWidth, plotHeight = 720, 440
	plotLeft, plotRight   = 70, 190
	plotTop, plotBottom   = 46, 54
)

var plotColours = []string{"#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#5f0f40"}

// Save writes the plot as SVG.
func (p Plot) Save(path string) error {
	minX, maxX, minY, maxY := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, s := range p.Series {
		for i := range s.X {
			minX, maxX = min(minX, s.X[i]), max(maxX, s.X[i])
			minY, maxY = min(minY, s.Low[i]), max(maxY, s.High[i])
		}
	}
	// Whole decades on the y axis, so that its ticks are round.
	minY, maxY = math.Pow(10, math.Floor(math.Log10(minY))), math.Pow(10, math.Ceil(math.Log10(maxY)))
	x := func(v float64) float64 {
		return plotLeft + (plotWidth-plotLeft-plotRight)*math.Log(v/minX)/math.Log(max(maxX, minX*2)/minX)
	}
	y := func(v float64) float64 {
		return plotHeight - plotBottom - (plotHeight-plotTop-plotBottom)*math.Log(v/minY)/math.Log(maxY/minY)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="24" font-size="15">%s</text>`+"\n", plotLeft, escape(p.Title))
	for v := minY; v <= maxY*1.001; v *= 10 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			plotLeft, plotWidth-plotRight, y(v), y(v), plotLeft-6, y(v)+4, v)
	}
	// Not so many labels that they touch.
	step := math.Pow(2, max(1, math.Ceil(math.Log2(maxX/minX)/10)))
	for v := minX; v <= maxX*1.001; v *= step {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#eee"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			x(v), x(v), plotTop, plotHeight-plotBottom, x(v), plotHeight-plotBottom+18, binary(v))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (plotLeft+plotWidth-plotRight)/2, plotHeight-14, escape(p.XLabel))
	fmt.Fprintf(&b, `<text transform="translate(18 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (plotTop+plotHeight-plotBottom)/2, escape(p.YLabel))
	for n, s := range p.Series {
		c := plotColours[n%len(plotColours)]
		var points []string
		for i := range s.X {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(s.X[i]), y(s.Y[i])))
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n",
				x(s.X[i]), x(s.X[i]), y(s.Low[i]), y(s.High[i]), c, x(s.X[i]), y(s.Y[i]), c)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", strings.Join(points, " "), c)
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			plotWidth-plotRight+14, plotTop+20*n, c, plotWidth-plotRight+30, plotTop+20*n+10, escape(s.Name))
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// binary writes 65536 as 64K.
func binary(v float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1 << 20, "M"}, {1 << 10, "K"}} {
		if n := v / unit.size; n >= 1 && n == math.Trunc(n) {
			return fmt.Sprintf("%g%s", n, unit.name)
		}
	}
	return fmt.Sprintf("%g", v)
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
