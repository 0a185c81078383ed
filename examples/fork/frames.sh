#!/bin/bash
#
# frames: render an animation in clones (the scripting workflow of 2.1.2).
#
#     frames.sh [CLONES [FRAMES]]
#
# Each clone renders the frames that are its share by its id, a dive into the
# Mandelbrot set as text by awk, and leaves them as files in the working
# directory, which `mpirun-sf vm run` shares with every VM. The parent joins the
# clones and puts the frames together, into frames.txt. With 0 CLONES nothing is
# forked and the result is the same.
#
# Watch it: awk -v RS='\f' '{ printf "\033[H%s", $0; system("sleep 0.1") }' frames.txt

set -eu

render() { # FRAME
	awk -v frame="$1" 'BEGIN {
		columns = 72; rows = 30; shades = " .:-=+*#%@"
		width = 3 * 0.8 ^ frame
		for (row = 0; row < rows; row++) {
			line = ""
			for (column = 0; column < columns; column++) {
				a = -0.7436 + width * (column / columns - 0.5)
				b = 0.1318 + width * (row / rows - 0.5) * 0.8
				x = y = 0
				for (n = 0; n < 150 && x * x + y * y < 4; n++) {
					t = x * x - y * y + a
					y = 2 * x * y + b
					x = t
				}
				line = line substr(shades, n == 150 ? 10 : n % 9 + 1, 1)
			}
			print line
		}
	}'
}

# share renders what falls to one of several workers.
share() { # WORKER WORKERS FRAMES FOLDER
	local frame
	for ((frame = $1; frame < $3; frame += $2)); do
		render "$frame" >"$4/$(printf %03d "$frame")" || return
	done
}

main() {
	local clones=${1:-4} frames=${2:-16} id granted ticket
	folder=$(mktemp -d "$PWD/frames.XXXXXX")
	trap 'rm -rf "$folder"' EXIT

	if ((clones == 0)); then
		share 0 1 "$frames" "$folder"
	else
		ticket=$(sf request-ticket "$clones")
		granted=$(sf ticket "$ticket" | wc -l)
		id=$(sf clone "$ticket")
		if ((id > 0)); then
			share $((id - 1)) "$granted" "$frames" "$folder" || sf exit 1
			sf exit
		fi
		sf join "$ticket" >/dev/null || { echo "frames: a clone failed" >&2; exit 1; }
		echo "$frames frames rendered in $granted clones" >&2
	fi

	local frame first=1
	for frame in "$folder"/*; do
		((first)) || printf '\f'
		first=0
		cat "$frame"
	done >frames.txt
	cksum frames.txt
	exit
}
main "$@"
