/* Between the launcher and its own interpreter. */
extern const int embedded_minor; /* N of the python3.N that is linked in */
void embedded(int argc, char **argv, const char *home, const char *packages, const char *python, void (*otherwise)(void));
