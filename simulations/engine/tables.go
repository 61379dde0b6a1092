package engine

// expQ[k-1] is the sum of ln(2)^i/i! for i from 1 to k, with 64 fraction bits:
// the table Q of Knuth's algorithm S. The first is ln(2).
var expQ = [...]uint64{
	0xb17217f7d1cf79ac, 0xeef193f6d75a96fd, 0xfd27186259aaf6c2, 0xff9d6dd050f4c5a7,
	0xfff4cfcfef1e626c, 0xfffee81886e1c62f, 0xffffe7fe850e0bb6, 0xfffffe2a8731b17e,
	0xffffffdfac6eeadc, 0xfffffffdf9640068, 0xffffffffe22ec79d, 0xfffffffffe6a9dee,
	0xffffffffffebff81, 0xffffffffffff1417, 0xfffffffffffff5cf, 0xffffffffffffff96,
	0xfffffffffffffffc, 0xffffffffffffffff,
}

// log2e is 1/ln(2) with 62 fraction bits.
const log2e = 0x5c551d94ae0bf85e

// exp2Table[i] is 2^(2^-(i+1)) with 62 fraction bits.
var exp2Table = [16]uint64{
	0x5a827999fcef3242, 0x4c1bf828c6dc54b8, 0x45cae0f1f545eb73, 0x42d561b3e6243d8a,
	0x4166c34c5615d0ec, 0x40b268f9de0183ba, 0x4058f6a7ecccd5b6, 0x402c6be96af2fb58,
	0x4016321b687027a8, 0x400b18178ba33b14, 0x40058bce410147e8, 0x4002c5d7bff71daf,
	0x400162e807ee7e5b, 0x4000b1730df6a524, 0x400058b9497b8152, 0x40002c5c955dd701,
}
