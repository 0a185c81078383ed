// Renders a picture with Tachyon's MPI library, whose ranks each compute lines of it: nine mirrors on a chess board, under
// one lamp. The first rank writes it to the file that is named.

#include <mpi.h>
#include <stdio.h>
#include <tachyon.h>

static void *paint(SceneHandle scene, int function, apicolor color, float mirror)
{
	apitexture t = {
		.texturefunc = function, .col = color, .shadowcast = 1,
		.ambient = 0.1, .diffuse = 0.9 - mirror, .specular = mirror, .opacity = 1,
		.scale = rt_vector(1.5, 1.5, 1.5),
	};
	return rt_texture(scene, &t);
}

int main(int argc, char **argv)
{
	int size, rank = rt_initialize(&argc, &argv);
	if (rank < 0 || argc != 2) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 1;
	}
	SceneHandle scene = rt_newscene();
	rt_outputfile(scene, argv[1]);
	rt_outputformat(scene, RT_FORMAT_PPM);
	rt_resolution(scene, 160, 120);
	rt_verbose(scene, 0);
	rt_background(scene, rt_color(0.2, 0.3, 0.5));
	rt_camera_setup(scene, 1.2, 4.0 / 3.0, 1, 6, rt_vector(0, 3, -8), rt_vector(0, -0.3, 1), rt_vector(0, 1, 0));

	rt_light(scene, paint(scene, RT_TEXTURE_CONSTANT, rt_color(1, 1, 1), 0), rt_vector(-6, 9, -5), 0.5);
	rt_plane(scene, paint(scene, RT_TEXTURE_3D_CHECKER, rt_color(0.9, 0.9, 0.8), 0), rt_vector(0, 0, 0), rt_vector(0, 1, 0));
	for (int i = 0; i < 9; i++) {
		apicolor c = rt_color(0.3 + 0.07 * i, 0.9 - 0.08 * i, 0.2 + 0.1 * (i % 3));
		rt_sphere(scene, paint(scene, RT_TEXTURE_CONSTANT, c, 0.1 * (i % 5)), rt_vector(i % 3 * 2 - 2, 0.8, i / 3 * 2), 0.8);
	}
	rt_renderscene(scene);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	printf("rank %d of %d\n", rank, size);
	rt_deletescene(scene);
	rt_finalize();
	return 0;
}
