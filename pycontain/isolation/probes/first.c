/* The smallest probe: a byte is out as soon as the program runs. */
#include "probe.h"

PROBE(first, "answers at once: the moment of the first instruction, seen from outside")
{
	json_text("said", "here");
	return 0;
}
