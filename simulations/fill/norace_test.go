//go:build !race

package fill

const testSeeds = len(publishedSeeds)
